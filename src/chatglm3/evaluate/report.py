"""Measure Chat, Base or both on a sample: all that the reports show, as frozen values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from chatglm3.chat import ChatGLM
from chatglm3.errors import MessageError
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
    """All that was measured. `differences` has one item for each condition if there are two models, in their order.

    `row_numbers` and `truth` go with `predicted` of each condition: the row in the file, and its label's number.
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
    examples: int = 4,
    seeds: int = 3,
    shown_text: str | None = None,
    load: Callable[[str], ChatGLM] = load_model,
    progress: Progress = lambda *_: None,
) -> Report:
    """Measure one or two models (names as `load` takes them; one at a time in memory), without and with `examples`.

    Examples are drawn once for each of `seeds` seeds, the same ones for both models. The prompts in the report ask
    about `shown_text`, or else about the first row. Raises DataError if there are too few rows to draw from,
    MessageError if a model is not of its kind, and what `load` raises.
    """
    given: tuple[tuple[Kind, str | Path | None], ...] = (("Chat", chat), ("Base", base))
    named = [(kind, str(name)) for kind, name in given if name is not None]
    if not named:
        raise MessageError("there is no model to measure; name a Chat model, a Base model or both")
    drawn = [draw_examples(sample.train, question.labels, examples, seed) for seed in range(seeds if examples else 0)]
    plan = Plan(question, sample, tuple(drawn), sample.test[0].text if shown_text is None else shown_text)
    tell = _Total(progress, len(named) * plan.rows)
    models: list[ModelResult] = []
    for kind, name in named:
        tell(f"loading {name}", 0)
        with load(name) as glm:
            models.append(measure(glm, kind, name, plan, tell))
    return _report(plan, examples, models)


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
    return tuple(paired_difference(correct(chat, truth), correct(base, truth)) for chat, base in pairs)


class _Total:
    """Adds up the rows of all passes for `progress`."""

    def __init__(self, progress: Progress, total: int) -> None:
        self._progress, self._total, self._rows = progress, total, 0

    def __call__(self, step: str, rows: int) -> None:
        self._rows += rows
        self._progress(step, self._rows, self._total)
