"""Makes the rows of the two recipes in this folder from takeaway.jsonl: 120 to learn from, 80 to measure.

    python examples/takeaway_rows.py build/takeaway

The folder gets chat.jsonl (conversations) and base.jsonl (plain text), the same 120 reviews with their topics in the
words that `chatglm3 evaluate` asks with, and learn.jsonl and test.jsonl, which it reads.
"""

import json
import sys
from pathlib import Path

from chatglm3.evaluate import Question

LEARNED = 120
TOPICS = ("配送", "口味", "分量", "服务")
QUESTION = Question(TOPICS)  # what `chatglm3 evaluate` asks if it is told the labels alone
CHAT, BASE = QUESTION.task(chat=True), QUESTION.task(chat=False)


def conversation(row: dict[str, str]) -> object:
    """A row for a Chat model: instruction, review, and the topic as the answer."""
    asked = {"role": "user", "content": CHAT.fill(row["review"])}
    answer = {"role": "assistant", "content": row["topic"]}
    return {"messages": [*(message.to_dict() for message in CHAT.conversation()), asked, answer]}


def completion(row: dict[str, str]) -> object:
    """A row for a Base model: text that goes on with the topic."""
    return {"prompt": BASE.plain_text(row["review"]), "response": row["topic"]}


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
    write(folder / "learn.jsonl", reviews[:LEARNED])
    write(folder / "test.jsonl", reviews[LEARNED:])
