"""Makes the training rows of the two recipes beside this file from takeaway.jsonl: 120 to learn from, 80 to measure.

    python examples/takeaway_rows.py build/takeaway

The folder gets chat.jsonl (conversations), base.jsonl (plain text) and test.jsonl (reviews with their topics).
"""

import json
import sys
from pathlib import Path

LEARNED = 120
SYSTEM = "判断外卖评论说的是什么，只回答“配送”“口味”“分量”或“服务”。"
PROMPT = "评论：{review}\n说的是："


def conversation(row: dict[str, str]) -> object:
    """A row for a Chat model: the answer is the topic."""
    turns = ("system", SYSTEM), ("user", row["review"]), ("assistant", row["topic"])
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def completion(row: dict[str, str]) -> object:
    """A row for a Base model: the text goes on with the topic."""
    return {"prompt": PROMPT.format(**row), "response": row["topic"]}


def write(file: Path, rows: list[object]) -> None:
    """Write one JSON object a line."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    lines = Path(__file__).with_name("takeaway.jsonl").read_text(encoding="utf-8").splitlines()
    reviews = [json.loads(line) for line in lines]
    write(folder / "chat.jsonl", [conversation(row) for row in reviews[:LEARNED]])
    write(folder / "base.jsonl", [completion(row) for row in reviews[:LEARNED]])
    write(folder / "test.jsonl", reviews[LEARNED:])
