"""Chat against Base on the 2,000 held-out reviews: writes docs/reports/nano-held-out.html and .md:

OMP_NUM_THREADS=1 python -m recipes.nano.report       # four minutes; one thread keeps the times steady

The examples in the prompts, and the text that the shown prompts ask about, come from examples/reviews.jsonl: the report
holds no sentence of the corpus. The wording is that of the model cards and of the training text, none chosen on these
rows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from chatglm3 import evaluate

from .data import NEGATIVE, POSITIVE, Review, load_reviews, split_reviews
from .evaluate import read_examples
from .judging import SYSTEM

FOLDER = Path("docs/reports")
BASE_PROMPT = f"问题：这条评论是{POSITIVE}还是{NEGATIVE}？{{text}}\n答案："  # one of the layouts in documents.py
QUESTION = evaluate.Question((POSITIVE, NEGATIVE), SYSTEM, base_system="", base_prompt=BASE_PROMPT)
SHOTS, SEEDS = 4, 3


def labelled(rows: Sequence[Review]) -> list[evaluate.LabelledText]:
    """Reviews as rows of an evaluation, numbered from 1."""
    return [evaluate.LabelledText(row.text, row.label, number) for number, row in enumerate(rows, 1)]


def tell(step: str, done: int, total: int) -> None:
    """Progress on one line of standard error."""
    print(f"\r{done:,} of {total:,}  {step:<50}", end="", file=sys.stderr, flush=True)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chat-model", default="nano")
    parser.add_argument("--base-model", default="nano-base")
    arguments = parser.parse_args()
    *examples, asked = read_examples()
    sample = evaluate.Sample.of(labelled(split_reviews(load_reviews()).held_out), labelled(examples))
    report = evaluate.compare(
        sample,
        QUESTION,
        chat=arguments.chat_model,
        base=arguments.base_model,
        examples=SHOTS,
        seeds=SEEDS,
        shown_text=asked.text,
        progress=tell,
    )
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "nano-held-out.html").write_text(evaluate.html_report(report), encoding="utf-8")
    (FOLDER / "nano-held-out.md").write_text(evaluate.markdown_report(report), encoding="utf-8")
    print(evaluate.markdown_report(report))


if __name__ == "__main__":
    main()
