"""The passes of one way of asking, in numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from numpy.typing import NDArray

from chatglm3.evaluate.metrics import (
    NO_LABEL,
    Bin,
    ClassScores,
    Interval,
    Numbers,
    accuracy,
    class_scores,
    confusion_matrix,
    expected_calibration_error,
    macro_f1,
    reliability,
    wilson_interval,
)
from chatglm3.evaluate.run import Method, Outcome, Run


@dataclass(frozen=True, slots=True)
class Spread:
    """A measure's mean over the seeds, and its standard deviation; None for a single pass."""

    mean: float
    deviation: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Over one value for each seed."""
        return cls(fmean(values), stdev(values) if len(values) > 1 else None)


@dataclass(frozen=True)
class Condition:
    """One model in one way of asking: means over the seeds; counts of all seeds together.

    `interval` is the 95 % interval of the accuracy for so many rows. `calibration` (ECE) and `reliability` are those of
    label scoring. `invalid` is the share of answers that are no label, failed rows among them; `failed` counts those,
    and `first_error` says what happened. Seconds and tokens are means for a row; `computed_tokens` of its prompt were
    not kept from an earlier row. `predicted` has for each seed the number of each row's label, -1 for none.
    """

    shots: int
    method: Method
    seeds: tuple[int, ...]
    accuracy: Spread
    interval: Interval
    macro_f1: Spread
    classes: tuple[ClassScores, ...]
    confusion: tuple[tuple[int, ...], ...]
    calibration: Spread | None
    reliability: tuple[Bin, ...]
    invalid: float
    failed: int
    first_error: str | None
    seconds: float
    prompt_tokens: float
    computed_tokens: float
    completion_tokens: float
    predicted: tuple[tuple[int, ...], ...]


def summarise(runs: Sequence[Run], truth: Numbers, labels: Sequence[str]) -> Condition:
    """Put together the passes (one for each seed) of one way of asking."""
    first, answers = runs[0], [answer for run in runs for answer in run.answers]
    predicted = [labels_of(run) for run in runs]
    matrices = [confusion_matrix(truth, found, len(labels)) for found in predicted]
    matrix: Numbers = np.sum(matrices, axis=0)
    right = Spread.of([accuracy(truth, found) for found in predicted])
    bins = [_bins([run], truth) for run in runs] if first.method == "scoring" else []
    errors = [str(answer.error) for answer in answers if answer.error is not None]
    return Condition(
        shots=first.shots,
        method=first.method,
        seeds=tuple(run.seed for run in runs if run.seed is not None),
        accuracy=right,
        interval=wilson_interval(right.mean, len(truth)),
        macro_f1=Spread.of([macro_f1(found) for found in matrices]),
        classes=class_scores(matrix, labels),
        confusion=tuple(tuple(int(count) for count in row) for row in matrix),
        calibration=Spread.of([expected_calibration_error(found) for found in bins]) if bins else None,
        reliability=_bins(runs, truth) if bins else (),
        invalid=sum(answer.label == NO_LABEL for answer in answers) / len(answers),
        failed=len(errors),
        first_error=errors[0] if errors else None,
        seconds=sum(run.seconds for run in runs) / len(answers),
        prompt_tokens=fmean(answer.prompt_tokens for answer in answers),
        computed_tokens=fmean(answer.prompt_tokens - answer.cached_tokens for answer in answers),
        completion_tokens=fmean(answer.completion_tokens for answer in answers),
        predicted=tuple(tuple(int(label) for label in found) for found in predicted),
    )


def labels_of(run: Run) -> Numbers:
    """The answers of a pass as numbers of labels, `[rows]`."""
    return np.array([answer.label for answer in run.answers], dtype=np.int64)


def correct(condition: Condition, truth: Numbers) -> NDArray[np.bool_]:
    """Which rows are right, `[seeds, rows]`."""
    found: NDArray[np.bool_] = np.array(condition.predicted, dtype=np.int64) == truth
    return found


def _bins(runs: Sequence[Run], truth: Numbers) -> tuple[Bin, ...]:
    """Of all answers of these passes that are a label."""
    asked: list[tuple[Outcome, int]] = [
        pair for run in runs for pair in zip(run.answers, truth, strict=True) if pair[0].label != NO_LABEL
    ]
    sure = np.array([answer.confidence for answer, _ in asked], dtype=np.float64)
    right = np.array([answer.label == label for answer, label in asked], dtype=np.bool_)
    return reliability(sure, right)
