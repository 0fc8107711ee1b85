"""The first pass over the input: which rows are wanted, which of them ask the same, and which columns there are.

Rows that ask the same share a prompt, unless answers are drawn: then each row has its own. Every fault of the file is
found before the model is asked anything. 16 bytes a row are kept during the pass and 4 after it; texts are read again
when they are needed.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chatglm3.bulk.jobs import Job
from chatglm3.errors import DataError
from chatglm3.tables import BadRow, Columns, Kind, Row, Table

BAD, SKIPPED = -1, -2
"""Instead of a prompt's number: the row has no prompt; the row is not in the sample."""


class Asked(NamedTuple):
    """A prompt: the number of the first row of the input that asks it, from 1, and that row's values."""

    row: int
    values: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """`numbers` has for each row the number of its prompt, counted in order of first appearance, or BAD or SKIPPED."""

    job: Job
    table: Table
    numbers: NDArray[np.int32]
    repeats: NDArray[np.int64]
    """How many rows have each prompt."""
    kinds: dict[str, Kind]

    @property
    def prompts(self) -> int:
        """How many prompts there are."""
        return len(self.repeats)

    @property
    def rows(self) -> int:
        """How many rows the output will have."""
        return int((self.numbers != SKIPPED).sum())

    @property
    def bad_rows(self) -> int:
        """How many rows have no prompt."""
        return int((self.numbers == BAD).sum())

    def numbered_rows(self) -> Iterator[tuple[int, Row | BadRow]]:
        """Each wanted row with its prompt's number."""
        for number, row in zip(self.numbers.tolist(), self.table.rows(), strict=False):
            if number != SKIPPED:
                yield number, row

    def windows(self, size: int) -> Iterator[list[Asked]]:
        """Every prompt, in order, in groups of `size`."""
        asked = self._asked()
        while window := list(islice(asked, size)):
            yield window

    def _asked(self) -> Iterator[Asked]:
        following = 0
        for place, (number, row) in enumerate(zip(self.numbers.tolist(), self.table.rows(), strict=False), 1):
            if number == following:
                yield Asked(place, self.job.template.values(row))
                following += 1


def make_plan(job: Job, table: Table) -> Plan:
    """Read the table once. Raises OSError, `DataError`, or `JobError` for a column that is not there."""
    digests, good, columns = bytearray(), bytearray(), Columns()
    for row in islice(table.rows(), job.limit):
        columns.see(row.values if isinstance(row, BadRow) else row)
        digest = _digest(job, row)
        good.append(bool(digest))
        digests += digest
    if not good:
        raise DataError(f"{table.path} has no rows")
    if any(good) or columns.kinds:  # a row may lack a column that others have
        job.template.check(columns.kinds)
    flags = np.frombuffer(good, dtype=np.bool_)
    wanted = np.ones(len(good), dtype=np.bool_) if job.sample is None else _drawn(len(good), job.sample, job.seed)
    numbers = np.full(len(good), BAD, dtype=np.int32)
    numbers[~wanted] = SKIPPED
    keys = np.frombuffer(digests, dtype=[("high", "<u8"), ("low", "<u8")])[wanted[flags]]
    numbers[flags & wanted] = np.arange(len(keys)) if job.draws else _numbered(keys)
    return Plan(job, table, numbers, np.bincount(numbers[numbers >= 0]), columns.kinds)


def _digest(job: Job, row: Row | BadRow) -> bytes:
    """16 bytes that stand for the values of the row's prompt; none if it has no prompt."""
    try:
        values = job.template.values(row)
    except DataError:
        return b""
    return hashlib.blake2b(json.dumps(values).encode(), digest_size=16).digest()


def _drawn(rows: int, wanted: int, seed: int) -> NDArray[np.bool_]:
    drawn = np.zeros(rows, dtype=np.bool_)
    drawn[random.Random(seed).sample(range(rows), min(rows, wanted))] = True
    return drawn


def _numbered(keys: NDArray[np.void]) -> NDArray[np.int64]:
    """Equal keys get equal numbers, in order of first appearance."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    places = np.empty(len(first), dtype=np.int64)
    places[np.argsort(first)] = np.arange(len(first))
    return places[inverse]
