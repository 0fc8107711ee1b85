"""Two models on the same rows: the difference of their accuracies, and what so many rows can show."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from chatglm3.evaluate.metrics import Floats, Interval

RESAMPLES = 10_000
LEVEL, POWER = 0.05, 0.8
FEWEST = 6
"""Rows on which just one model is right, all the same one, before McNemar's exact test falls below 0.05."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The first model's accuracy minus the second's, as a share, in one way of asking.

    `first_only` and `second_only` count the rows on which just one is right (with several seeds: right in more of
    them), `p_value` is McNemar's, and `detectable` is the smallest difference that so many rows would probably show.
    """

    rows: int
    value: float
    interval: Interval
    first_only: int
    second_only: int
    p_value: float
    detectable: float

    @property
    def shown(self) -> bool:
        """Whether interval and test both say that one model is better."""
        return self.interval_excludes_zero and self.p_value < LEVEL

    @property
    def interval_excludes_zero(self) -> bool:
        """Whether the whole interval is on one side of 0."""
        return self.interval.low > 0 or self.interval.high < 0


def paired_difference(first: NDArray[np.bool_], second: NDArray[np.bool_], seed: int = 0) -> Difference:
    """Compare which rows are right, `[seeds, rows]` of each model; the seeds of a row are averaged first."""
    each = first.mean(0) - second.mean(0)
    first_only, second_only = int((each > 0).sum()), int((each < 0).sum())
    return Difference(
        rows=len(each),
        value=float(each.mean()),
        interval=bootstrap_interval(each, seed=seed),
        first_only=first_only,
        second_only=second_only,
        p_value=mcnemar_exact(first_only, second_only),
        detectable=smallest_detectable(each),
    )


def bootstrap_interval(values: Floats, *, resamples: int = RESAMPLES, seed: int = 0, level: float = 0.95) -> Interval:
    """Percentile interval of the mean when the rows are drawn again with replacement.

    Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), chapter 13. A row's value is one of a few, so how
    often each of them is drawn is multinomial: the same resamples, without their indices.
    """
    kinds, counts = np.unique(values, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=resamples)
    low, high = np.quantile(drawn @ kinds / len(values), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def mcnemar_exact(first_only: int, second_only: int) -> float:
    """Two-sided p-value of McNemar's exact test from the rows on which just one of two models is right.

    If both were equally good, each such row would be a fair coin: p = 2 * P(Binomial(n, 1/2) <= the smaller count), at
    most 1. McNemar (Psychometrika 1947), in its exact form; Dietterich, "Approximate Statistical Tests for Comparing
    Supervised Classification Learning Algorithms" (Neural Computation 1998), on its use here.
    """
    n = first_only + second_only
    logs = (
        math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2)
        for k in range(min(first_only, second_only) + 1)
    )
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def smallest_detectable(each: Floats) -> float:
    """The difference that so many rows would show in four of five samples, given how often the models differ.

    (z(0.975) + z(0.8)) * sqrt(mean(d^2) / rows) + 1 / rows: the sample size of Connor, "Sample Size for Testing
    Differences in Proportions for the Paired-Sample Design" (Biometrics 1987), solved for the difference without its
    small square, and one row for the caution of the exact test. Never below what that test needs.
    """
    normal = NormalDist()
    reach = normal.inv_cdf(1 - LEVEL / 2) + normal.inv_cdf(POWER)
    rows = len(each)
    return max(reach * math.sqrt(float(np.mean(each**2)) / rows) + 1 / rows, FEWEST / rows)


def sentence(difference: Difference, first: str, second: str) -> str:
    """What the rows show and what they do not, for people; `first` and `second` are what the models are called."""
    points, rows = 100 * difference.value, f"{difference.rows:,} rows"
    found = f"{abs(points):.1f} points {'more' if points > 0 else 'less'} accurate than" if points else "as accurate as"
    low, high = format_points(difference.interval.low), format_points(difference.interval.high)
    numbers = f"95 % interval of the difference {low} to {high}, McNemar {format_p(difference.p_value)}"
    verdict = _verdict(difference, first, second)
    return f"On these {rows} {first} is {found} {second} ({numbers}): {verdict} {_limit(difference, rows)}"


def _verdict(difference: Difference, first: str, second: str) -> str:
    if difference.shown:
        return f"they show that {first if difference.value > 0 else second} is better here."
    if difference.interval_excludes_zero or difference.p_value < LEVEL:
        return "interval and test disagree, so they show no clear difference."
    return "they do not show which of the two is better."


def _limit(difference: Difference, rows: str) -> str:
    if difference.detectable >= 1:
        return f"{rows} are too few to show any difference."
    limit = f"{100 * difference.detectable:.1f} points"
    if difference.shown and abs(difference.value) < difference.detectable:
        return (
            f"With {rows}, one under {limit} is found less than four times in five, so it may look larger than it is."
        )
    return f"With {rows}, a difference under {limit} would probably not be seen."


def format_points(share: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * share:+.1f}".replace("-", "−")


def format_p(value: float) -> str:
    """A p-value with as many digits as mean something."""
    if value < 0.001:
        return "p < 0.001"
    return f"p = {value:.3f}" if value < 0.01 else f"p = {value:.2f}"
