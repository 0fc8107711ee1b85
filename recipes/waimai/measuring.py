"""The held-out part, measured once: both models before and after, and what needs no model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

import chatglm3
from chatglm3 import evaluate
from chatglm3.evaluate.metrics import Interval, Numbers, accuracy, confusion_matrix, macro_f1, wilson_interval
from chatglm3.evaluate.paired import paired_difference
from chatglm3.evaluate.report import Progress
from chatglm3.evaluate.summary import correct

from ..nano.evaluate import read_examples
from ..nano.report import QUESTION, SEEDS, SHOTS, labelled
from .baseline import Baseline, linear, majority
from .data import Parts
from .tuning import Route, Trial

Right = NDArray[np.bool_]


@dataclass(frozen=True)
class Scores:
    """A baseline's accuracy on the held-out part, its interval, and its macro-F1."""

    name: str
    accuracy: float
    interval: Interval
    macro_f1: float


@dataclass(frozen=True)
class Comparison:
    """Two ways of answering the held-out part, and by how much the first is more accurate."""

    first: str
    second: str
    difference: evaluate.Difference


@dataclass(frozen=True)
class BeforeAfter:
    """A model on the held-out part: as it was, without and with examples, and fine-tuned, without."""

    kind: str
    before: evaluate.Report
    after: evaluate.Report


@dataclass(frozen=True)
class Measured:
    """All of it."""

    routes: tuple[BeforeAfter, ...]
    baselines: tuple[Scores, ...]
    comparisons: tuple[Comparison, ...]


def measure(parts: Parts, chosen: Sequence[tuple[Route, Trial]], progress: Progress) -> Measured:
    """Measure every route with the adapter of its chosen trial and without it, and the baselines."""
    sample = evaluate.Sample.of(labelled(parts.held_out), labelled(parts.train))
    routes = tuple(_before_and_after(sample, route, trial, progress) for route, trial in chosen)
    baselines = majority(parts), linear(parts)
    truth = _numbers([row.label for row in parts.held_out])
    return Measured(
        routes,
        tuple(_scores(baseline, truth) for baseline in baselines),
        tuple(_comparisons(routes, baselines[-1], truth)),
    )


def _before_and_after(sample: evaluate.Sample, route: Route, trial: Trial, progress: Progress) -> BeforeAfter:
    def report(examples: int, load: Callable[[str], chatglm3.ChatGLM]) -> evaluate.Report:
        return evaluate.compare(
            sample,
            QUESTION,
            chat=route.model if route.kind == "Chat" else None,
            base=route.model if route.kind == "Base" else None,
            examples=examples,
            seeds=SEEDS,
            shown_text=read_examples()[-1].text,
            load=load,
            progress=progress,
        )

    before = report(SHOTS, chatglm3.load)
    return BeforeAfter(route.kind, before, report(0, partial(chatglm3.load, adapter=trial.adapter)))


def _comparisons(routes: Sequence[BeforeAfter], baseline: Baseline, truth: Numbers) -> Iterator[Comparison]:
    """By label scoring; every fine-tuned model without examples."""
    trained = {f"fine-tuned {route.kind}": _right(route.after, 0, truth) for route in routes}
    for route, (name, right) in zip(routes, trained.items(), strict=True):
        for shots, second in ((0, f"zero-shot {route.kind}"), (SHOTS, f"{route.kind} with {SHOTS} examples")):
            yield Comparison(name, second, paired_difference(right, _right(route.before, shots, truth)))
    (first, chat), (second, base) = trained.items()
    yield Comparison(first, second, paired_difference(chat, base))
    plain = (_numbers(baseline.answers) == truth)[np.newaxis]
    for name, right in trained.items():
        yield Comparison(name, "TF-IDF with logistic regression", paired_difference(right, plain))


def _right(report: evaluate.Report, shots: int, truth: Numbers) -> Right:
    """Which rows are right by label scoring, `[seeds, rows]`."""
    conditions = report.models[0].conditions
    return correct(next(c for c in conditions if (c.shots, c.method) == (shots, "scoring")), truth)


def _scores(baseline: Baseline, truth: Numbers) -> Scores:
    found = _numbers(baseline.answers)
    share = accuracy(truth, found)
    matrix = confusion_matrix(truth, found, len(QUESTION.labels))
    return Scores(baseline.name, share, wilson_interval(share, len(truth)), macro_f1(matrix))


def _numbers(labels: Sequence[str]) -> Numbers:
    return np.array([QUESTION.labels.index(label) for label in labels], dtype=np.int64)
