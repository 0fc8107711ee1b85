"""Measures of a classification, as small functions on arrays.

Labels are numbers from 0. `NO_LABEL` stands for an answer that is none of the labels; it is always wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
Floats = NDArray[np.float64]
NO_LABEL = -1
BINS = 10


@dataclass(frozen=True, slots=True)
class Interval:
    """From `low` to `high`."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ClassScores:
    """One label: precision, recall and F1 are shares, 0 where nothing can be divided; `support` counts its rows."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class Bin:
    """Answers whose probability is above `low` and at most `high`: its mean, and the share of them that is right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def accuracy(truth: Numbers, predicted: Numbers) -> float:
    """Share of rows whose answer is the true label."""
    return float((truth == predicted).mean())


def confusion_matrix(truth: Numbers, predicted: Numbers, labels: int) -> Numbers:
    """Counts `[labels, labels + 1]`: a row for each true label, a column for each answer, the last for no label."""
    columns = np.where(predicted == NO_LABEL, labels, predicted)
    counts = np.bincount(truth * (labels + 1) + columns, minlength=labels * (labels + 1))
    return counts.reshape(labels, labels + 1)


def class_scores(matrix: Numbers, labels: Sequence[str]) -> tuple[ClassScores, ...]:
    """Precision, recall and F1 of each label from the confusion matrix."""
    hits, support, given = np.diagonal(matrix), matrix.sum(1), matrix.sum(0)[: len(matrix)]
    columns = (_ratio(hits, given), _ratio(hits, support), _ratio(2 * hits, given + support), support)
    return tuple(
        ClassScores(label, float(p), float(r), float(f1), int(n))
        for label, p, r, f1, n in zip(labels, *columns, strict=True)
    )


def macro_f1(matrix: Numbers) -> float:
    """Mean F1 over all labels; a label without a row counts as 0."""
    return float(np.mean([scores.f1 for scores in class_scores(matrix, [""] * len(matrix))]))


def reliability(confidence: Floats, correct: NDArray[np.bool_], bins: int = BINS) -> tuple[Bin, ...]:
    """The answers by the probability of their label, in `bins` equally wide bins."""
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    sure = _ratio(np.bincount(place, confidence, bins), counts)
    right = _ratio(np.bincount(place, correct, bins), counts)
    return tuple(Bin(i / bins, (i + 1) / bins, int(counts[i]), float(sure[i]), float(right[i])) for i in range(bins))


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """ECE = sum over bins of (answers in the bin / all answers) * |accuracy - mean probability|.

    Of the most probable label, in equally wide bins: Naeini, Cooper and Hauskrecht, "Obtaining Well Calibrated
    Probabilities Using Bayesian Binning" (AAAI 2015); Guo et al., "On Calibration of Modern Neural Networks" (ICML
    2017). 0 if there are no answers.
    """
    total = sum(part.count for part in bins)
    return sum(part.count * abs(part.accuracy - part.confidence) for part in bins) / total if total else 0.0


def wilson_interval(share: float, rows: int, level: float = 0.95) -> Interval:
    """Interval of a share of `rows`: Wilson, "Probable Inference" (JASA 1927). Sound near 0 and 1, and for few rows."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    centre = share + z * z / (2 * rows)
    reach = z * np.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    scale = 1 + z * z / rows
    return Interval(max(0.0, float(centre - reach) / scale), min(1.0, float(centre + reach) / scale))


def _ratio(part: NDArray[np.generic], whole: NDArray[np.generic]) -> Floats:
    """Part over whole, 0 where the whole is 0."""
    shares: Floats = np.divide(part, whole, out=np.zeros(len(whole)), where=whole != 0)
    return shares
