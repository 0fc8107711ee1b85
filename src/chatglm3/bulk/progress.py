"""How far a job is, how fast it goes, and what it came to."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from chatglm3.bulk.plan import Plan
from chatglm3.bulk.task import Result
from chatglm3.tables import Row

FIRST_ERRORS = 5


@dataclass(frozen=True)
class Progress:
    """Rows so far, and what this run (not an earlier one that it goes on with) computed."""

    rows: int
    total: int
    errors: int
    resumed: int
    """Rows that were there when this run began."""
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    seconds: float

    @property
    def rows_per_second(self) -> float:
        """Of this run."""
        return (self.rows - self.resumed) / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens that the model computed; cached ones do not count."""
        computed = self.prompt_tokens - self.cached_tokens + self.completion_tokens
        return computed / self.seconds if self.seconds else 0.0

    @property
    def prefix_hits(self) -> float:
        """The share of prompt tokens that were there already."""
        return self.cached_tokens / self.prompt_tokens if self.prompt_tokens else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At the speed of this run; None before there is one."""
        return (self.total - self.rows) / self.rows_per_second if self.rows_per_second else None


@dataclass(frozen=True)
class Summary:
    """What a job came to; `first_errors` are row numbers of the output and what is wrong there."""

    output: Path
    rows: int
    prompts: int
    """How many were computed; rows that ask the same share one, unless answers are drawn."""
    errors: int
    first_errors: tuple[tuple[int, str], ...]
    progress: Progress


class Meter:
    """Counts what is done, and tells it."""

    def __init__(self, plan: Plan, tell: Callable[[Progress], None]) -> None:
        self._plan, self._tell = plan, tell
        self._prompts = 0
        self._rows = self._errors = plan.bad_rows
        self._resumed = plan.bad_rows
        self._tokens = np.zeros(3, dtype=np.int64)
        self._first_errors: list[tuple[int, str]] = []
        self._start = time.perf_counter()
        tell(self.progress)

    @property
    def progress(self) -> Progress:
        """Now."""
        prompt, cached, completion = (int(count) for count in self._tokens)
        seconds = time.perf_counter() - self._start
        rows = (self._rows, self._plan.rows, self._errors, self._resumed)
        return Progress(*rows, prompt, cached, completion, seconds)

    def resume(self, values: Sequence[Row]) -> None:
        """A window that an earlier run computed."""
        self._resumed += self._count(values)
        self._start = time.perf_counter()

    def add(self, results: Sequence[Result]) -> None:
        """A window that was computed now."""
        self._count([result.values for result in results])
        for result in results:
            self._tokens += (result.prompt_tokens, result.cached_tokens, result.completion_tokens)
        self._tell(self.progress)

    def _count(self, values: Sequence[Row]) -> int:
        repeats = self._plan.repeats[self._prompts : self._prompts + len(values)].tolist()
        self._prompts += len(values)
        self._rows += sum(repeats)
        self._errors += sum(count for count, row in zip(repeats, values, strict=True) if row["error"] is not None)
        return sum(repeats)

    def see(self, place: int, values: Row) -> None:
        """The new columns of a row of the output."""
        if values["error"] is not None and len(self._first_errors) < FIRST_ERRORS:
            self._first_errors.append((place, str(values["error"])))

    def summary(self) -> Summary:
        """At the end."""
        errors = tuple(self._first_errors)
        return Summary(self._plan.job.output, self._rows, self._prompts, self._errors, errors, self.progress)
