"""What a job is asked to do, in the words of the command line. A value that cannot be is refused before any work."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from chatglm3.bulk.template import Template
from chatglm3.classify import TEXT, Task
from chatglm3.engine.params import SamplingParams
from chatglm3.errors import JobError
from chatglm3.messages import History, Message, check_history


@dataclass(frozen=True, kw_only=True)
class Job:
    """What both kinds of jobs are told."""

    input: Path
    output: Path
    prompt: str | None = None
    """A template with {column} where a row's value goes."""
    column: str | None = None
    """Short for the prompt that is this column's value alone."""
    system: str | None = None
    history: History = ()
    encoding: str | None = None
    output_prefix: str = ""
    """What the names of the new columns begin with."""
    truncate: bool = False
    """Cut the values of rows that are longer than the context."""
    limit: int | None = None
    """Only the first rows."""
    sample: int | None = None
    """Only as many rows, drawn with `seed`."""
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.column is None):
            raise JobError("say what each row is asked: give either prompt or column")
        if self.system is not None and self.history and self.history[0].role == "system":
            raise JobError("give system or a history that begins with a system message, not both")
        check_history(self.history)
        for name in ("limit", "sample"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise JobError(f"{name} must be a number of rows, at least 1, not {value!r}")
        self.template  # noqa: B018 (it is parsed, or refused, now)

    @cached_property
    def template(self) -> Template:
        """The prompt."""
        return Template.parse(self.prompt) if self.prompt is not None else Template.of_column(self.column or "")

    @property
    def draws(self) -> bool:
        """Whether answers are drawn, each row's with random numbers of its own; else equal rows have equal results."""
        return False

    @property
    def opening(self) -> History:
        """The messages that come before every row's."""
        return (*([Message.system(self.system)] if self.system is not None else []), *self.history)

    def identity(self) -> dict[str, Any]:
        """All that the output depends on besides the input's rows and the model, as JSON values."""
        found = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("input", "output")}
        found["history"] = [message.to_dict() for message in self.history]
        return found


@dataclass(frozen=True, kw_only=True)
class RunJob(Job):
    """Let the model answer every row."""

    choices: tuple[str, ...] | None = None
    """The only answers there may be."""
    json_schema: object = None
    """What every answer is valid against, as JSON values."""
    sampling: SamplingParams = field(default_factory=lambda: SamplingParams(temperature=0))
    """Its seed is not used; each row has one, made of `seed` and the row's number."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampling.logprobs is not None or self.sampling.max_time is not None:
            raise JobError(
                "a job has no column for logprobs, and max_time would make answers a matter of speed; leave them"
            )
        if self.truncate and self.sampling.max_new_tokens is None and self.choices is None:
            raise JobError(
                "truncate cuts rows until an answer fits behind them: say how long one is, with max_new_tokens"
            )

    @property
    def draws(self) -> bool:
        """True with a temperature, unless a beam search ignores it."""
        return self.sampling.temperature > 0 and self.sampling.num_beams == 1

    def identity(self) -> dict[str, Any]:
        """With each sampling parameter by its own name."""
        found = super().identity()
        del found["sampling"]
        return dataclasses.asdict(self.sampling) | found


@dataclass(frozen=True, kw_only=True)
class ClassifyJob(Job):
    """Give every row the most probable label."""

    labels: tuple[str, ...]
    examples: tuple[tuple[str, str], ...] = ()
    """Finished prompts and their labels."""
    calibrate: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        Task(self.labels, True, TEXT, examples=self.examples)  # which checks them
