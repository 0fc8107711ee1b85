"""The reviews of a CSV file (columns label, 1 or 0, and review), cleaned and split into three parts without overlap.

The parts are to train on, to choose a setting on, and to measure once. Nothing of the file is kept in the repository.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from chatglm3 import evaluate
from chatglm3.errors import DataError

from ..nano.data import NEGATIVE, POSITIVE, Review, load_reviews, near_duplicates


@dataclass(frozen=True)
class Sizes:
    """How many reviews each part has."""

    train: int
    validation: int
    held_out: int


@dataclass(frozen=True)
class Cleaning:
    """Rows of the file, and how many of them were left out, and why."""

    rows: int
    repeated: int
    contradictory: int
    known: int
    """Reviews that the bundled models were trained on."""
    near: int
    """Reviews that nearly repeat one of a part that is measured."""


@dataclass(frozen=True)
class Parts:
    """The three parts, and what was left out before. No text is in them twice, nor nearly in two of them."""

    train: tuple[Review, ...]
    validation: tuple[Review, ...]
    held_out: tuple[Review, ...]
    cleaning: Cleaning


def read_parts(path: Path, sizes: Sizes, seed: int) -> Parts:
    """Read, clean and split the file. Raises DataError in one line if it is not what it must be, or too small."""
    sample = evaluate.read_sample(path, {POSITIVE: "1", NEGATIVE: "0"}, train_fraction=0)
    rows = [Review(" ".join(row.text.split()), row.label) for row in sample.test]
    agreed, repeated, contradictory = distinct(rows)
    known = {review.key for review in load_reviews()}
    new = [row for row in agreed if row.key not in known]
    wanted = sizes.train + sizes.validation + sizes.held_out
    if len(new) < wanted:
        raise DataError(f"{path}: {len(new):,} distinct reviews are too few for the {wanted:,} of all parts; give more")
    Random(seed).shuffle(new)
    held_out = new[: sizes.held_out]
    validation, rest, close = _take(new[sizes.held_out :], sizes.validation, held_out)
    train, _, closer = _take(rest, sizes.train, [*held_out, *validation])
    if len(train) < sizes.train:
        raise DataError(f"{path}: {len(train):,} reviews are left to train on, {sizes.train:,} are needed; give more")
    cleaning = Cleaning(len(rows), repeated, contradictory, len(agreed) - len(new), close + closer)
    return Parts(tuple(train), tuple(validation), tuple(held_out), cleaning)


def distinct(rows: Sequence[Review]) -> tuple[list[Review], int, int]:
    """Each text once, in order, without those that have both labels; how many rows repeat, and how many contradict."""
    first: dict[str, Review] = {}
    labels: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        first.setdefault(row.key, row)
        labels[row.key].append(row.label)
    agreed = [review for key, review in first.items() if key and len(set(labels[key])) == 1]
    contradictory = sum(len(given) for given in labels.values() if len(set(given)) > 1)
    return agreed, len(rows) - contradictory - len(agreed), contradictory


def _take(rows: Sequence[Review], count: int, measured: Sequence[Review]) -> tuple[list[Review], list[Review], int]:
    """The first `count` rows that do not nearly repeat a measured one, the other rows, and how many do."""
    near = near_duplicates(rows, measured)
    free = [row for row in rows if row not in near]
    return free[:count], free[count:], len(near)
