"""Rows for the benchmarks of jobs: reviews put together from the parts of those in examples/reviews.jsonl."""

from __future__ import annotations

import json
import random
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples" / "reviews.jsonl"


def write_reviews(path: Path, rows: int, *, seed: int = 0) -> None:
    """A JSONL file of `rows` different reviews of three parts each."""
    lines = EXAMPLES.read_text(encoding="utf-8").splitlines()
    parts = [part for line in lines for part in json.loads(line)["review"].rstrip("。！").split("，")]
    rng, seen = random.Random(seed), set[str]()
    with path.open("w", encoding="utf-8") as file:
        while len(seen) < rows:
            review = "，".join(rng.sample(parts, 3)) + "。"
            if review not in seen:
                seen.add(review)
                file.write(json.dumps({"id": len(seen), "review": review}, ensure_ascii=False) + "\n")
