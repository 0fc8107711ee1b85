"""Labelled rows: read and checked, split into rows to measure and rows to draw examples from, and drawn."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path
from random import Random

from chatglm3.errors import DataError
from chatglm3.tables import as_text, read_rows

SPLIT_SEED = 0
"""Of the split and of `sample`; the seeds of the examples are another matter."""


@dataclass(frozen=True, slots=True)
class LabelledText:
    """A text, its true label, and the number of its row in the file, from 1."""

    text: str
    label: str
    row: int = 0


@dataclass(frozen=True)
class Sample:
    """The rows to measure and the rows that examples are drawn from, which are not empty; no text is in both.

    `repeats` counts the rows that were removed from `train` because their text is in `test`.
    """

    test: tuple[LabelledText, ...]
    train: tuple[LabelledText, ...] = ()
    repeats: int = 0

    @classmethod
    def of(cls, test: Sequence[LabelledText], train: Sequence[LabelledText] = ()) -> Sample:
        """Remove from `train` what is in `test`; case, spaces and width of letters make no other text."""
        shown, measured = [(_key(row.text), row) for row in train if row.text.strip()], {_key(row.text) for row in test}
        kept = {key: row for key, row in shown if key not in measured}
        repeats = sum(key in measured for key, _ in shown)
        return cls(tuple(test), tuple(kept.values()), repeats)


def read_sample(
    path: str | Path,
    labels: Sequence[str] | Mapping[str, str],
    *,
    train: str | Path | None = None,
    train_fraction: float = 0.2,
    text_column: str = "review",
    label_column: str = "label",
    limit: int | None = None,
    sample: int | None = None,
    encoding: str | None = None,
) -> Sample:
    """Read a table: examples come from the file `train`, or else from a random share of the rows of each label.

    A mapping of `labels` says what each one is called in the file: {"正面": "1", "负面": "0"}. `limit` reads the first
    rows only; `sample` measures so many rows, drawn at random. Raises DataError with the row where the table is not as
    it must be.
    """
    values = labels if isinstance(labels, Mapping) else {label: label for label in labels}
    names = {value: label for label, value in values.items()}
    columns = (text_column, label_column)
    rows = _read(Path(path), columns, names, encoding, limit)
    rng = Random(SPLIT_SEED)
    if train is not None:
        test, shown = rows, _read(Path(train), columns, names, encoding)
    else:
        test, shown = _split(rows, train_fraction, rng)
    if not test:
        raise DataError(f"{path}: {len(rows)} rows leave none to measure; give more rows, or a smaller train fraction")
    if sample is not None and sample < len(test):
        test = sorted(rng.sample(test, sample), key=lambda row: row.row)
    return Sample.of(test, shown)


def draw_examples(sample: Sample, labels: Sequence[str], count: int, seed: int) -> tuple[tuple[str, str], ...]:
    """`count` texts with their labels in random order, from each label alike as far as there are rows.

    Raises DataError if there are not so many rows.
    """
    there = len(sample.train)
    if there < count:
        repeats = f", and {sample.repeats} more that repeat a measured text" if sample.repeats else ""
        raise DataError(
            f"too few rows for {count} examples, which are drawn from rows that are not measured "
            f"(here: {there}{repeats}); ask for fewer (--examples {there}), "
            "set more aside (--train-fraction), or draw from a file (--train)"
        )
    rng = Random(seed)
    pools = [[row for row in sample.train if row.label == label] for label in labels]
    for pool in pools:
        rng.shuffle(pool)
    rng.shuffle(pools)
    in_turn = [row for turn in zip_longest(*pools) for row in turn if row is not None][:count]
    rng.shuffle(in_turn)
    return tuple((row.text, row.label) for row in in_turn)


def _key(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _split(rows: Sequence[LabelledText], fraction: float, rng: Random) -> tuple[list[LabelledText], list[LabelledText]]:
    """Rows to measure, in their order, and a random share of the rows of each label."""
    chosen: set[int] = set()
    for label in sorted({row.label for row in rows}):
        places = [place for place, row in enumerate(rows) if row.label == label]
        chosen.update(rng.sample(places, round(fraction * len(places))))
    return [r for i, r in enumerate(rows) if i not in chosen], [r for i, r in enumerate(rows) if i in chosen]


def _read(
    path: Path, columns: tuple[str, str], names: Mapping[str, str], encoding: str | None, limit: int | None = None
) -> list[LabelledText]:
    rows = list(islice(read_rows(path, encoding=encoding), limit))
    for column in columns:
        if not any(column in row for row in rows):
            known = ", ".join(map(str, rows[0]))
            raise DataError(f"{path}: no column {column!r}; it has {known}: name the right one")
    texts, labels = ([as_text(row.get(column)).strip() for row in rows] for column in columns)
    _refuse(path, [_is_broken(text) for text in texts], "half a character (a lone surrogate)", "repair them")
    _refuse(path, [not label for label in labels], "no label", "label them, or remove them")
    _refuse_labels(path, labels, names)
    return [LabelledText(text, names[label], i) for i, (text, label) in enumerate(zip(texts, labels, strict=True), 1)]


def _refuse(path: Path, wrong: Sequence[bool], what: str, then: str) -> None:
    if any(wrong):
        count, first = sum(wrong), wrong.index(True) + 1
        raise DataError(f"{path}, row {first}: {what}; {count} of {len(wrong)} rows are like this, so {then}")


def _refuse_labels(path: Path, labels: Sequence[str], names: Mapping[str, str]) -> None:
    strange = Counter(label for label in labels if label not in names)
    if strange:
        first = next(i for i, label in enumerate(labels, 1) if label in strange)
        shown = ", ".join(f"{label!r} ({count})" for label, count in strange.most_common(5))
        known = ", ".join(names)
        raise DataError(
            f"{path}, row {first}: labels that are none of {known}: {shown}; name them too, or remove the rows"
        )


def _is_broken(text: str) -> bool:
    return any("\ud800" <= letter <= "\udfff" for letter in text)
