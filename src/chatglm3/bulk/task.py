"""What a job does with a model: finished prompts in, values of the new columns out, a window of prompts at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chatglm3.bulk.jobs import Job
from chatglm3.engine.prefix import common_prefix
from chatglm3.errors import ChatGLMError, ContextLengthError, JobError, TokenizerError
from chatglm3.tables import Kind, Row

if TYPE_CHECKING:
    from chatglm3.chat import ChatGLM


@dataclass(frozen=True)
class Prompt:
    """A finished prompt, and the seed of what is drawn for it."""

    text: str
    seed: int


@dataclass(frozen=True)
class Result:
    """What came of one prompt: values of the new columns (`error` among them), and the tokens that it took."""

    values: Row
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class Task(ABC):
    """A job's work on a loaded model."""

    window: int
    """How many prompts are computed together, and written to the journal together."""
    kinds: dict[str, Kind]
    """The new columns."""
    room: int
    """Tokens that must be free behind a prompt."""
    advice: str
    """What to do if there is no room for them."""

    def __init__(self, glm: ChatGLM, job: Job) -> None:
        if job.history and not glm.capabilities.chat:
            raise JobError("a Base model knows no conversation; write into the prompt what the history says")
        self._glm, self._template, self._truncate = glm, job.template, job.truncate

    @abstractmethod
    def prompt_ids(self, text: str) -> list[int]:
        """What the model sees of a finished prompt. Raises TokenizerError for text that is none."""

    @abstractmethod
    def _results(self, prompts: Sequence[Prompt]) -> list[Result]:
        """A result for each prompt; what is wrong with one of them is in its result."""

    def require_room(self) -> None:
        """Raise `JobError` if no row can fit, because all that is not a value is too long already."""
        size, most = len(self.prompt_ids(self._template.frame)), self._glm.engine.max_context
        if size + self.room > most:
            raise JobError(
                f"no row can fit: without a value the prompt has {size} tokens and {self.room} must be free behind it, "
                f"more than the context of {most}; {self.advice}"
            )

    def text(self, values: Sequence[str]) -> str:
        """The finished prompt of a row's values, cut to the context if the job says so."""
        if self._truncate:
            return self._template.fill_within(values, self._fits)
        return self._template.fill(values)

    def compute(self, prompts: Sequence[Prompt]) -> list[Result]:
        """The results of a window. They depend on nothing but it, so that a job that goes on makes the same ones."""
        self._glm.engine.forget()
        return self._results(prompts)

    @contextmanager
    def shared(self, texts: Sequence[str]) -> Iterator[None]:
        """Keep what all these prompts begin with, computed once, for all the prompts to come."""
        first, *others = [ids for text in texts if (ids := self.ids(text))] or [[]]
        size = min((common_prefix(first, ids) for ids in others), default=0)
        if not 0 < size < self._glm.engine.max_context:
            yield
            return
        self._glm.engine.forget()
        held = self._glm.engine.hold(first[:size])
        try:
            yield
        finally:
            self._glm.engine.release(held)

    def ids(self, text: str) -> list[int]:
        """The prompt's ids; none for text that the tokenizer refuses, whose result will say why."""
        try:
            return self.prompt_ids(text)
        except TokenizerError:
            return []

    def _fits(self, text: str) -> bool:
        return len(self.ids(text)) + self.room <= self._glm.engine.max_context

    def failed(self, error: ChatGLMError) -> Result:
        """The result of a prompt, or the new columns of a row, that has none."""
        hint = isinstance(error, ContextLengthError) and not self._truncate
        reason = f"{error}, or cut such rows with --truncate" if hint else str(error)
        return Result(dict.fromkeys(self.kinds) | {"error": reason})
