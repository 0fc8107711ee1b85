"""Which rows each step learns from, and how they become tensors.

The rows of a step depend on the seed and the step's number alone, so a run can go on from any step, and several
processes see the rows that one would. Rows are laid end to end and not padded: attention sees each row alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import ceil
from random import Random

import torch
from torch import Tensor

from chatglm3.train.data import IGNORED, TrainingRow
from chatglm3.train.dataset import Dataset


@dataclass(frozen=True)
class Batch:
    """Rows laid end to end for one forward pass.

    `input_ids` and `positions` [1, s] hold each row without its last id, `lengths` says how many ids that is for each.
    `places` [n] are the positions along s that have a target, `targets` [n] the ids that should follow there and
    `weights` [n], fp32, how much each counts. A place with a soft target is there twice.
    """

    rows: tuple[int, ...]
    """Their numbers in the data file, from 1."""
    input_ids: Tensor
    positions: Tensor
    lengths: tuple[int, ...]
    places: Tensor
    targets: Tensor
    weights: Tensor


def pack(data: Dataset, places: Sequence[int], device: torch.device | str = "cpu") -> Batch:
    """The batch of the rows at these places of `data`, on `device`. Without any, it is a row without targets."""
    parts = [data.rows[place] for place in places or (0,)]
    ids = [i for part in parts for i in part.input_ids[:-1]]
    lengths = tuple(len(part.input_ids) - 1 for part in parts)
    starts = accumulate(lengths, initial=0)
    found = [(start, *target) for start, part in zip(starts, parts, strict=False) for target in _targets(part)]
    found = found if places else []
    return Batch(
        tuple(data.numbers[place] for place in places),
        torch.tensor([ids], device=device),
        torch.tensor([[position for length in lengths for position in range(length)]], device=device),
        lengths,
        torch.tensor([start + place for start, place, _, _ in found], dtype=torch.long, device=device),
        torch.tensor([target for _, _, target, _ in found], dtype=torch.long, device=device),
        torch.tensor([weight for *_, weight in found], dtype=torch.float32, device=device),
    )


def weight_of(row: TrainingRow) -> float:
    """How much the targets of a row count together: how many there are, if each counts 1."""
    return sum(weight for _, _, weight in _targets(row))


def _targets(row: TrainingRow) -> Iterator[tuple[int, int, float]]:
    """The place along the row of the id before each target, the target, and its weight."""
    soft = {target.position: target for target in row.soft}
    for position, label in enumerate(row.labels[1:], 1):
        if label == IGNORED:
            continue
        weight = 1.0 if row.weights is None else row.weights[position]
        if position in soft:
            share = soft[position].probability
            yield position - 1, soft[position].other, weight * (1 - share)
            weight *= share
        yield position - 1, label, weight


@dataclass(frozen=True)
class Plan:
    """The order in which a run goes through its rows: all of them, shuffled anew for each epoch."""

    lengths: tuple[int, ...]
    """Tokens of each row of the data."""
    batch_size: int
    """Rows of one forward pass of one process; `accumulation` passes of `processes` processes make a step."""
    accumulation: int = 1
    processes: int = 1
    seed: int = 0
    wanted_steps: int | None = None
    epochs: float = 1.0
    """How often each row is seen, if `wanted_steps` is None."""

    @property
    def rows_per_step(self) -> int:
        """Rows of all passes of all processes."""
        return self.batch_size * self.accumulation * self.processes

    @property
    def total_rows(self) -> int:
        """Rows of the whole run, repeated ones included."""
        if self.wanted_steps is not None:
            return self.wanted_steps * self.rows_per_step
        return max(1, round(self.epochs * len(self.lengths)))

    @property
    def steps(self) -> int:
        """Steps of the whole run; the last one of a run of epochs may have fewer rows."""
        return ceil(self.total_rows / self.rows_per_step)

    def epoch(self, step: int) -> float:
        """How often the data have been seen after `step` steps."""
        return min(step * self.rows_per_step, self.total_rows) / len(self.lengths)

    def rows(self, step: int) -> list[int]:
        """The places in the data of the rows of step `step`, from 0."""
        first = step * self.rows_per_step
        last = min(first + self.rows_per_step, self.total_rows)
        size = len(self.lengths)
        return [_order(self.seed, place // size, size)[place % size] for place in range(first, last)]

    def shares(self, step: int, process: int) -> list[list[int]]:
        """Of the rows of a step, those of each forward pass of one process; a list is empty if there are too few.

        They are dealt out so that each pass of each process has about as many tokens.
        """
        dealt = deal(self.rows(step), self.lengths, self.accumulation * self.processes)
        return dealt[process :: self.processes]


def deal(rows: Sequence[int], lengths: Sequence[int], hands: int) -> list[list[int]]:
    """Put the rows into `hands` lists of about as many tokens: the longest row first, each to the shortest list."""
    dealt: list[list[int]] = [[] for _ in range(hands)]
    tokens = [0] * hands
    for row in sorted(rows, key=lambda row: (-lengths[row], row)):
        shortest = tokens.index(min(tokens))
        dealt[shortest].append(row)
        tokens[shortest] += lengths[row]
    return dealt


def in_order(lengths: Sequence[int], batch_size: int, process: int = 0, processes: int = 1) -> Iterator[list[int]]:
    """Every row once, for measuring: this process's share in batches, the longest rows together.

    All processes have as many batches, of which the last may be empty.
    """
    rows = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))[process::processes]
    for start in range(0, ceil(len(lengths) / processes), batch_size):
        yield rows[start : start + batch_size]


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, size: int) -> list[int]:
    order = list(range(size))
    Random(f"{seed} {epoch}").shuffle(order)
    return order
