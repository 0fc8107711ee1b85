"""The loop that made people leave: 200 queries that reuse one history list.

The official `chat` appends each query to the list it was given and its answer to a copy only: the next call sees one
more user turn, so every row costs more than the last. Here that append is made by hand, on an engine that keeps no
prefix (the official code has none), beside `glm.chat(query, history)`, which leaves its history alone.

    python bench/history.py [--rows 200] [--model nano]
"""

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

import chatglm3
from chatglm3.engine.engine import Engine

SYSTEM = {"role": "system", "content": "判断评论的情感，只回答“正面”或“负面”。"}
REVIEWS = ("很好看", "太吵了", "性价比高", "送得慢", "还会再来")
GREEDY = {"temperature": 0.0, "max_new_tokens": 4}


def resident_kib() -> int:
    """Resident memory now, in KiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() // 1024


def run(rows: int, ask: Callable[[str], chatglm3.Reply]) -> list[tuple[float, int, int]]:
    """Milliseconds, prompt tokens and resident KiB of every row."""
    measured = []
    for row in range(rows):
        start = time.perf_counter()
        reply = ask(REVIEWS[row % len(REVIEWS)])
        measured.append((1000 * (time.perf_counter() - start), reply.usage.prompt_tokens, resident_kib()))
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--model", default="nano")
    options = parser.parse_args()

    glm = chatglm3.load(options.model)
    shared = [SYSTEM]
    ours = run(options.rows, lambda review: glm.chat(review, shared, **GREEDY))

    glm.engine = Engine(glm.model, glm.tokenizer.vocab_size, kept_caches=0)
    reused = [SYSTEM]

    def official(review: str) -> chatglm3.Reply:
        reply = glm.chat(review, reused, **GREEDY)
        reused.append({"role": "user", "content": review})  # what the official code does to the caller's list
        return reply

    theirs = run(options.rows, official)

    table = Table("rows", "official: ms", "prompt tokens", "here: ms", "prompt tokens", "resident MiB")
    for first in range(0, options.rows, max(1, options.rows // 10)):
        part = slice(first, first + max(1, options.rows // 10))
        old, new = theirs[part], ours[part]
        table.add_row(
            f"{first + 1}-{first + len(new)}",
            f"{statistics.median(t for t, _, _ in old):.1f}",
            str(old[-1][1]),
            f"{statistics.median(t for t, _, _ in new):.1f}",
            str(new[-1][1]),
            f"{new[-1][2] / 1024:.1f}",
        )
    Console(width=100).print(table)
    early, late = ours[min(19, options.rows - 1)][2], ours[-1][2]
    print(f"resident memory, row {min(20, options.rows)} to row {options.rows}: {100 * (late - early) / early:+.2f} %")
    print(f"the caller's history here: {len(shared)} message; the official list: {len(reused)} messages")


if __name__ == "__main__":
    main()
