"""Measures the bundled models with the package's own `chat` and `score`, and writes recipes/nano/results.json:

python -m recipes.nano.evaluate       # two minutes

The 2,000 held-out reviews are measured here and nowhere else.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import chatglm3

from .data import NEGATIVE, POSITIVE, Review, Split, load_reviews, split_reviews
from .judging import SYSTEM
from .teacher import fit_tfidf

EXAMPLES = Path("examples/reviews.jsonl")
RESULTS = Path(__file__).with_name("results.json")
SHOTS = 4  # the first rows of examples/reviews.jsonl, shown to the Base model
WORDS = {POSITIVE: "好评", NEGATIVE: "差评"}


def read_examples() -> list[Review]:
    """The reviews written for this project."""
    rows = map(json.loads, EXAMPLES.read_text(encoding="utf-8").splitlines())
    return [Review(row["review"], row["label"]) for row in rows]


def accuracy(answers: Sequence[str], rows: Sequence[Review]) -> float:
    """Share of rows whose answer is exactly the label."""
    return round(sum(answer == row.label for answer, row in zip(answers, rows, strict=True)) / len(rows), 4)


def chat_answers(model: str, rows: Sequence[Review]) -> list[str]:
    """What `chat` says at temperature 0 under the documented system prompt."""
    history = [chatglm3.Message.system(SYSTEM)]
    with chatglm3.load(model) as glm:
        queries = [row.text for row in rows]
        replies = glm.chat_batch(queries, history, temperature=0, max_new_tokens=16)
        return [reply.text for reply in replies]


def few_shot_answers(model: str, rows: Sequence[Review], shots: Sequence[Review]) -> list[str]:
    """The label whose word `score` finds likelier after a few labelled reviews."""
    shown = "".join(f"评论：{shot.text}\n评价：{WORDS[shot.label]}\n\n" for shot in shots)
    labels = list(WORDS)
    with chatglm3.load(model) as glm:
        scores = [glm.score(f"{shown}评论：{row.text}\n评价：", list(WORDS.values())) for row in rows]
    return [labels[int(np.argmax(pair))] for pair in scores]


def baseline_answers(split: Split) -> list[str]:
    """TF-IDF and logistic regression, fitted on the training rows of the models."""
    labels = np.array([row.label == POSITIVE for row in split.train], dtype=np.float64)
    positive = fit_tfidf([row.text for row in split.train], labels, [row.text for row in split.held_out])
    return [POSITIVE if p >= 0.5 else NEGATIVE for p in positive]


def measure(chat_model: str, base_model: str) -> dict[str, float | int]:
    """All the numbers of the model cards."""
    split, examples = split_reviews(load_reviews()), read_examples()
    majority = max(WORDS, key=lambda label: sum(row.label == label for row in split.train))
    base = few_shot_answers(base_model, split.held_out, examples[:SHOTS])
    return {
        "training_rows": len(split.train),
        "held_out_rows": len(split.held_out),
        "nano_chat": accuracy(chat_answers(chat_model, split.held_out), split.held_out),
        "nano_base_few_shot": accuracy(base, split.held_out),
        "tfidf_logistic_regression": accuracy(baseline_answers(split), split.held_out),
        "majority_class": accuracy([majority] * len(split.held_out), split.held_out),
        "nano_chat_examples": accuracy(chat_answers(chat_model, examples), examples),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chat-model", default="nano")
    parser.add_argument("--base-model", default="nano-base")
    arguments = parser.parse_args()
    results = measure(arguments.chat_model, arguments.base_model)
    text = json.dumps(results, indent=2)
    RESULTS.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
