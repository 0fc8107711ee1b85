"""Rows for jobs: any number of different reviews, made of the halves of those in examples/reviews.jsonl."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[2] / "examples" / "reviews.jsonl"
SYSTEM = "判断评论的情感，只回答“正面”或“负面”。"


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def reviews(count: int) -> Iterator[dict[str, Any]]:
    """Rows with an id and a review; no two reviews are the same."""
    halves = [row["review"].split("，", 1) for row in read(EXAMPLES)]
    for i in range(count):
        first, second = halves[i % len(halves)][0], halves[(i // len(halves) + i) % len(halves)][-1]
        yield {"id": i, "review": f"{first}，{second}" if i < len(halves) ** 2 else f"{first}，{second}{i}"}


def write(path: Path, rows: list[dict[str, Any]] | Iterator[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
