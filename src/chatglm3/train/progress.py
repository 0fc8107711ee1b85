"""What a run tells while it goes: a bar for people, metrics.jsonl and TensorBoard for later."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress

from chatglm3.errors import TrainingError
from chatglm3.train.folder import METRICS


@dataclass(frozen=True)
class Progress:
    """A run after some of its steps; numbers are those since the last report."""

    step: int
    steps: int
    epoch: float
    loss: float
    learning_rate: float
    gradient_norm: float | None
    tokens_per_second: float
    seconds_left: float

    def metrics(self) -> dict[str, float]:
        """What is written down."""
        kept = {"epoch": self.epoch, "loss": self.loss, "learning_rate": self.learning_rate}
        if self.gradient_norm is not None:
            kept["gradient_norm"] = self.gradient_norm
        return {**kept, "tokens_per_second": round(self.tokens_per_second, 1)}

    def __str__(self) -> str:
        return (
            f"loss {self.loss:.4f}, rate {self.learning_rate:.2e}, {self.tokens_per_second:,.0f} tokens/s, "
            f"{_time(self.seconds_left)} left"
        )


class Meter:
    """Losses and tokens since the last report, and the time that they took."""

    def __init__(self, steps: int, first: int) -> None:
        """A run of so many steps, of which `first` were done before."""
        self._steps, self._first = steps, first
        self._start = self._last = time.perf_counter()
        self._losses: list[float] = []
        self._tokens = 0
        self._norm: float | None = None

    def add(self, loss: float, gradient_norm: float | None, tokens: int) -> None:
        """A step, with the tokens of all its rows."""
        self._losses.append(loss)
        self._tokens += tokens
        self._norm = gradient_norm

    def report(self, step: int, epoch: float, rate: float) -> Progress:
        """Where the run is after `step` steps, the last of which had this learning rate."""
        now = time.perf_counter()
        loss, speed = sum(self._losses) / len(self._losses), self._tokens / (now - self._last)
        left = (now - self._start) / (step - self._first) * (self._steps - step)
        self._losses, self._tokens, self._last = [], 0, now
        return Progress(step, self._steps, epoch, loss, rate, self._norm, speed, left)


class Reporter(Protocol):
    """Who is told how a run goes."""

    def note(self, text: str) -> None:
        """Something to be known, in one line."""

    def progress(self, now: Progress) -> None:
        """Some more steps are done."""

    def measured(self, step: int, metrics: Mapping[str, float]) -> None:
        """The validation rows were measured after `step` steps."""


class Silent:
    """A reporter that says nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def progress(self, now: Progress) -> None:
        """Nothing."""

    def measured(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing."""


class ProgressBar:
    """A reporter on standard error: a bar on a terminal, otherwise a line for each report."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        self._bar = RichProgress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("", total=None, visible=False)

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._bar.stop()

    def note(self, text: str) -> None:
        """A line."""
        self._console.print(text, markup=False)

    def progress(self, now: Progress) -> None:
        """Move the bar."""
        if self._bar.disable:
            self.note(f"step {now.step:,}/{now.steps:,}: {now}")
        self._bar.update(self._task, completed=now.step, total=now.steps, description=str(now), visible=True)

    def measured(self, step: int, metrics: Mapping[str, float]) -> None:
        """A line with all metrics."""
        words = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in metrics.items())
        self.note(f"step {step:,}: {words}")


class MetricsLog:
    """metrics.jsonl in a run's folder: one line for each report, and the same in TensorBoard's files if asked for."""

    def __init__(self, folder: Path, first_step: int, tensorboard: bool) -> None:
        """Lines behind `first_step`, which a run that was stopped wrote, are dropped. So is the test, done again."""
        self.path = folder / METRICS
        self._writer = _summary_writer(folder / "tensorboard", first_step) if tensorboard else None
        found = self.read() if first_step else []
        kept = [line for line in found if line["step"] <= first_step and "test_loss" not in line]
        temporary = self.path.with_suffix(".incomplete")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        temporary.replace(self.path)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add what was found after `step` steps; a number that is not finite is null, since JSON has none."""
        line = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **line}) + "\n")
        if self._writer is not None:
            for name, value in metrics.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def read(self) -> list[dict[str, Any]]:
        """All lines; one that a crash cut short does not count."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1]]

    def points(self, name: str) -> list[tuple[int, float]]:
        """Steps and values of one metric."""
        return [(line["step"], line[name]) for line in self.read() if line.get(name) is not None]


def _summary_writer(folder: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise TrainingError("tensorboard=true needs TensorBoard: pip install tensorboard") from None
    return SummaryWriter(str(folder), purge_step=first_step + 1)


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
