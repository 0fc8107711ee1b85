"""Measure Chat, Base or both on a sample: all that the reports show, as frozen values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from chatglm3.chat import ChatGLM
from chatglm3.errors import DataError, MessageError
from chatglm3.evaluate.about import about_this_run
from chatglm3.evaluate.data import Sample, draw_examples
from chatglm3.evaluate.measuring import Kind, ModelResult, Plan, measure
from chatglm3.evaluate.metrics import Numbers
from chatglm3.evaluate.paired import Difference, paired_difference
from chatglm3.evaluate.question import Question
from chatglm3.evaluate.summary import correct
from chatglm3.loading import load as load_model

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told what is being measured, how many rows of all passes are done, and how many there are."""


@dataclass(frozen=True)
class Report:
    """All that was measured.

    If there are two models, `differences` has one item for each condition, in their order: the first model's accuracy
    minus the second's. `row_numbers` and `truth` go with `predicted` of each condition: the row in the file, and its
    label's number.
    """

    question: Question
    label_counts: dict[str, int]
    train_rows: int
    repeats: int
    examples: int
    seeds: int
    models: tuple[ModelResult, ...]
    differences: tuple[Difference, ...]
    about: dict[str, str]
    row_numbers: tuple[int, ...]
    truth: tuple[int, ...]

    @property
    def rows(self) -> int:
        """How many rows were measured."""
        return len(self.truth)


def compare(
    sample: Sample,
    question: Question,
    *,
    chat: str | Path | None = None,
    base: str | Path | None = None,
    chat_adapter: str | Path | None = None,
    base_adapter: str | Path | None = None,
    examples: int = 4,
    seeds: int = 3,
    shown_text: str | None = None,
    load: Callable[[str], ChatGLM] = load_model,
    progress: Progress = lambda *_: None,
) -> Report:
    """Measure one or two models (names as `load` takes them; one at a time in memory), without and with `examples`.

    `chat_adapter` and `base_adapter` are folders of adapters for them; a model that is alone and has one is measured
    with it and without it. Examples are drawn once for each of `seeds` seeds, the same ones for both models. The
    prompts in the report ask about `shown_text`, or else about the first row with a text. Raises DataError if there
    are too few rows to draw from, MessageError if a model is not of its kind, AdapterError, and what `load` raises.
    """
    named = [*_named("Chat", chat, chat_adapter), *_named("Base", base, base_adapter)]
    if not named:
        raise MessageError("there is no model to measure; name a Chat model, a Base model or both")
    if not sample.test:
        raise DataError("there are no rows to measure")
    if len(named) == 1:
        named = [replace(named[0], adapters=tuple(dict.fromkeys([*named[0].adapters, None])))]
    drawn = [draw_examples(sample, question.labels, examples, seed) for seed in range(seeds if examples else 0)]
    if shown_text is None:
        shown_text = next((row.text for row in sample.test if row.text.strip()), "")
    plan = Plan(question, sample, tuple(drawn), shown_text)
    tell = _Total(progress, sum(len(model.adapters) for model in named) * plan.rows)
    return _report(plan, examples, [result for model in named for result in _measured(model, plan, load, tell)])


@dataclass(frozen=True, slots=True)
class _Named:
    """A model to load, and the adapters to measure it with, one after the other; None is none."""

    kind: Kind
    name: str
    adapters: tuple[str | None, ...]


def _named(kind: Kind, name: str | Path | None, adapter: str | Path | None) -> list[_Named]:
    if name is None and adapter is not None:
        raise MessageError(f"{adapter} is an adapter for a {kind} model, and none is named; name the model too")
    return [] if name is None else [_Named(kind, str(name), (None if adapter is None else str(adapter),))]


def _measured(
    model: _Named, plan: Plan, load: Callable[[str], ChatGLM], tell: Callable[[str, int], None]
) -> list[ModelResult]:
    tell(f"loading {model.name}", 0)
    with load(model.name) as glm:
        for adapter in filter(None, model.adapters):
            glm.add_adapter(adapter, adapter)
        return [measure(glm, model.kind, model.name, adapter, plan, tell) for adapter in model.adapters]


def _report(plan: Plan, examples: int, models: Sequence[ModelResult]) -> Report:
    sample, labels = plan.sample, plan.question.labels
    counts = Counter(row.label for row in sample.test)
    return Report(
        question=plan.question,
        label_counts={label: counts[label] for label in labels},
        train_rows=len(sample.train),
        repeats=sample.repeats,
        examples=examples,
        seeds=len(plan.drawn),
        models=tuple(models),
        differences=_differences(models, plan.truth),
        about=about_this_run(),
        row_numbers=tuple(row.row for row in sample.test),
        truth=tuple(int(label) for label in plan.truth),
    )


def _differences(models: Sequence[ModelResult], truth: Numbers) -> tuple[Difference, ...]:
    if len(models) < 2:
        return ()
    pairs = zip(models[0].conditions, models[1].conditions, strict=True)
    return tuple(paired_difference(correct(first, truth), correct(second, truth)) for first, second in pairs)


class _Total:
    """Adds up the rows of all passes for `progress`."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._rows = progress, total, 0

    def __call__(self, step: str, rows: int) -> None:
        self._rows += rows
        self._progress(step, self._rows, self._total)
