"""A model on the rows: one pass for each way of asking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Literal, TypeAlias

from chatglm3.answers import Completion
from chatglm3.chat import ChatGLM
from chatglm3.classify import Task, require_text
from chatglm3.errors import ChatGLMError, attempt
from chatglm3.evaluate.metrics import NO_LABEL
from chatglm3.reply import Reply

Method: TypeAlias = Literal["scoring", "generation"]
METHODS: tuple[Method, ...] = ("scoring", "generation")
CHUNK = 32
"""Rows that are asked together, which is also how often progress is told."""
SPARE_TOKENS = 8
"""A free answer may be so much longer than the longest label before it is cut."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a model made of one row: a label's number (`NO_LABEL` if it is none), the probability, and what it cost."""

    label: int
    confidence: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    error: ChatGLMError | None = None


Ask: TypeAlias = Callable[[list[str]], list[Outcome]]


@dataclass(frozen=True)
class Run:
    """One pass over all rows; `seed` chose the examples, None without examples."""

    shots: int
    seed: int | None
    method: Method
    answers: tuple[Outcome, ...]
    seconds: float


def run(
    glm: ChatGLM,
    adapter: str | None,
    task: Task,
    texts: Sequence[str],
    method: Method,
    seed: int | None,
    done: Callable[[int], None],
) -> Run:
    """Ask every text, of the model with `adapter`; `done` is told how many rows each step has finished.

    A row that cannot be asked has its error in its answer; if that is so for every row, the first error is raised.
    """
    ask = partial(_score if method == "scoring" else _converse if task.chat else _complete, glm, adapter, task)
    answers: list[Outcome] = []
    seconds = 0.0
    for start in range(0, len(texts), CHUNK):
        chunk = texts[start : start + CHUNK]
        began = perf_counter()
        answers += _outcomes(ask, chunk)
        seconds += perf_counter() - began
        done(len(chunk))
    errors = [answer.error for answer in answers if answer.error is not None]
    if len(errors) == len(answers):
        raise errors[0]
    return Run(len(task.examples), seed, method, tuple(answers), seconds)


def _outcomes(ask: Ask, texts: Sequence[str]) -> list[Outcome]:
    """Ask the texts in which there is something."""
    checked = [attempt(partial(require_text, text), keep_errors=True) for text in texts]
    found = iter(ask([text for text in checked if isinstance(text, str)]))
    return [next(found) if isinstance(text, str) else Outcome(NO_LABEL, error=text) for text in checked]


def _score(glm: ChatGLM, adapter: str | None, task: Task, texts: list[str]) -> list[Outcome]:
    """The most probable label; nothing is generated."""
    results = glm.classify(
        texts,
        task.labels,
        system=task.system,
        examples=task.examples,
        prompt=task.template,
        adapter=adapter,
        return_errors=True,
    )
    return [
        Outcome(NO_LABEL, error=result)
        if isinstance(result, ChatGLMError)
        else Outcome(
            task.labels.index(result.label),
            result.probabilities[result.label],
            result.prompt_tokens,
            result.cached_tokens,
        )
        for result in results
    ]


def _converse(glm: ChatGLM, adapter: str | None, task: Task, texts: list[str]) -> list[Outcome]:
    """What a Chat model says, greedily."""
    queries, limit = [task.fill(text) for text in texts], _longest_answer(glm, task)
    replies = glm.chat_batch(
        queries, task.conversation(), adapter=adapter, return_errors=True, temperature=0, max_new_tokens=limit
    )
    return [_free_answer(task, reply) for reply in replies]


def _complete(glm: ChatGLM, adapter: str | None, task: Task, texts: list[str]) -> list[Outcome]:
    """How a Base model goes on to the end of the line, greedily."""
    prompts, limit = [task.plain_text(text) for text in texts], _longest_answer(glm, task)
    found = glm.complete(prompts, adapter=adapter, return_errors=True, temperature=0, max_new_tokens=limit, stop=["\n"])
    return [_free_answer(task, completion) for completion in found]


def _longest_answer(glm: ChatGLM, task: Task) -> int:
    return max(len(glm.tokenizer.encode(label)) for label in task.labels) + SPARE_TOKENS


def _free_answer(task: Task, result: Reply | Completion | ChatGLMError) -> Outcome:
    """Only the label itself is that label, but for space around it."""
    if isinstance(result, ChatGLMError):
        return Outcome(NO_LABEL, error=result)
    text, usage = result.text.strip(), result.usage
    label = task.labels.index(text) if text in task.labels else NO_LABEL
    return Outcome(label, 0.0, usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens)


def shots_name(shots: int) -> str:
    """How many examples a prompt has, in words."""
    return f"{shots} example{'s' if shots > 1 else ''}" if shots else "zero-shot"


def way_name(shots: int, method: Method) -> str:
    """A way of asking, in words."""
    return f"{shots_name(shots)}, {'label scoring' if method == 'scoring' else 'free generation'}"
