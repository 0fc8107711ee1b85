"""One model on a plan: all its passes over the rows, and the prompts it saw."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeAlias

import numpy as np

from chatglm3.chat import ChatGLM
from chatglm3.errors import MessageError
from chatglm3.evaluate.about import about_model
from chatglm3.evaluate.data import Sample
from chatglm3.evaluate.metrics import Numbers
from chatglm3.evaluate.question import Question
from chatglm3.evaluate.run import METHODS, Run, run, shots_name, way_name
from chatglm3.evaluate.summary import Condition, summarise
from chatglm3.prompt import render

Kind: TypeAlias = Literal["Chat", "Base"]
Examples: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Plan:
    """What every model is measured on: `drawn` has the examples of each seed, `shown` the text of the shown prompts."""

    question: Question
    sample: Sample
    drawn: tuple[Examples, ...]
    shown: str

    @property
    def ways(self) -> tuple[tuple[int | None, Examples], ...]:
        """Seed and examples of each pass, without examples first."""
        return ((None, ()), *enumerate(self.drawn))

    @property
    def rows(self) -> int:
        """How many rows a model is asked, over all its passes."""
        return len(METHODS) * len(self.ways) * len(self.sample.test)

    @property
    def truth(self) -> Numbers:
        """The numbers of the true labels, `[rows]`."""
        labels = self.question.labels
        return np.array([labels.index(row.label) for row in self.sample.test], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class FinishedPrompt:
    """A prompt as the model saw it, rendered for human eyes."""

    title: str
    text: str


@dataclass(frozen=True)
class ModelResult:
    """One model: what it is, and its conditions (zero-shot first, label scoring before free generation).

    `adapter` is the folder of the adapter that acted on it.
    """

    kind: Kind
    name: str
    adapter: str | None
    about: str
    prompts: tuple[FinishedPrompt, ...]
    conditions: tuple[Condition, ...]

    @property
    def title(self) -> str:
        """What it is called beside another model."""
        return title_of(self.kind, self.adapter)


def title_of(kind: Kind, adapter: str | None) -> str:
    """Chat or Base, with an adapter or without."""
    return kind if adapter is None else f"{kind} with adapter"


def measure(
    glm: ChatGLM, kind: Kind, name: str, adapter: str | None, plan: Plan, tell: Callable[[str, int], None]
) -> ModelResult:
    """Run every pass. `tell` hears what is being measured and how many more rows are done.

    `adapter` names one that was added to the model. Raises MessageError if the model is not of its kind.
    """
    if glm.capabilities.chat != (kind == "Chat"):
        raise MessageError(f"{name} is a {'Base' if kind == 'Chat' else 'Chat'} model; name it as one")
    runs = sorted(_runs(glm, kind, adapter, plan, tell), key=lambda run: run.shots)
    groups: dict[tuple[int, str], list[Run]] = {}
    for one in runs:
        groups.setdefault((one.shots, one.method), []).append(one)
    conditions = tuple(summarise(group, plan.truth, plan.question.labels) for group in groups.values())
    about, prompts = about_model(glm, adapter), tuple(_prompts(glm, kind, plan))
    return ModelResult(kind, name, adapter, about, prompts, conditions)


def _runs(glm: ChatGLM, kind: Kind, adapter: str | None, plan: Plan, tell: Callable[[str, int], None]) -> Iterator[Run]:
    """All passes; two with the same prompts are far apart, so that neither is cheap thanks to the other."""
    texts = [row.text for row in plan.sample.test]
    for method in METHODS:
        for seed, examples in plan.ways:
            way = f"{way_name(len(examples), method)}{'' if seed is None else f', seed {seed}'}"
            step = f"{title_of(kind, adapter)}, {way}"
            tell(step, 0)
            task = plan.question.task(chat=kind == "Chat", examples=examples)
            yield run(glm, adapter, task, texts, method, seed, partial(tell, step))


def _prompts(glm: ChatGLM, kind: Kind, plan: Plan) -> Iterator[FinishedPrompt]:
    """Without examples, and with those of the first seed."""
    for _, examples in plan.ways[:2]:
        task = plan.question.task(chat=kind == "Chat", examples=examples)
        text = render(glm.tokenizer, task.prompt(glm.tokenizer, plan.shown))
        yield FinishedPrompt(f"{kind}, {shots_name(len(examples))}", text)
