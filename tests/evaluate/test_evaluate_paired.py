"""Two models on the same rows: interval and test against slow but plain computations, and the sentence."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from chatglm3.evaluate.metrics import Interval
from chatglm3.evaluate.paired import (
    Difference,
    bootstrap_interval,
    format_p,
    mcnemar_exact,
    paired_difference,
    sentence,
    smallest_detectable,
)

CLEAR = Difference(2000, 0.032, Interval(0.011, 0.053), 160, 96, 0.0004, 0.0156)
NAMES = ("Chat", "Base")


def test_the_interval_is_that_of_drawing_rows_again() -> None:
    values = np.random.default_rng(1).choice([-1.0, 0.0, 1.0], size=80, p=[0.1, 0.7, 0.2])
    rows = np.random.default_rng(2).integers(0, 80, (20_000, 80))
    slow = np.quantile(values[rows].mean(1), [0.025, 0.975])
    fast = bootstrap_interval(values)
    assert (fast.low, fast.high) == pytest.approx(slow, abs=0.01)
    assert bootstrap_interval(values) == fast


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        found = bootstrap_interval(rng.choice([-1.0, 0.0, 1.0], size=100, p=[0.1, 0.6, 0.3]), resamples=500, seed=seed)
        held += found.low <= 0.2 <= found.high
    assert 180 <= held <= 198


@pytest.mark.parametrize(("first", "second"), [(1, 5), (5, 1), (0, 6), (3, 3), (0, 0), (7, 2)])
def test_the_exact_test_counts_every_toss_of_its_coins(first: int, second: int) -> None:
    coins, far = first + second, abs(first - second)
    tosses = [sum(toss) for toss in product((0, 1), repeat=coins)]
    expected = sum(abs(2 * heads - coins) >= far for heads in tosses) / len(tosses)
    assert mcnemar_exact(first, second) == pytest.approx(expected)


def test_the_exact_test_stands_many_rows() -> None:
    assert mcnemar_exact(50_000, 50_000) == 1
    assert 0 <= mcnemar_exact(40_000, 60_000) < 1e-100


def test_seeds_of_a_row_are_averaged() -> None:
    chat = np.array([[True, True, False, True], [True, False, False, True]])
    base = np.array([[True, False, True, True], [False, False, True, True]])
    found = paired_difference(chat, base)
    assert (found.rows, found.first_only, found.second_only) == (4, 2, 1)
    assert found.value == pytest.approx((0.5 + 0.5 - 1 + 0) / 4)


def test_equal_models_differ_by_nothing() -> None:
    same = np.array([[True, False] * 30])
    found = paired_difference(same, same)
    assert (found.value, found.interval, found.p_value) == (0, Interval(0, 0), 1)
    assert not found.shown
    assert found.detectable == 6 / 60  # six rows, all for one model, is the least the test needs


def test_a_difference_as_large_as_the_smallest_detectable_is_found_in_four_of_five_samples() -> None:
    rng, rows, often = np.random.default_rng(3), 500, 0.2
    limit = smallest_detectable(np.repeat([-1.0, 0.0, 1.0], [50, 400, 50]))
    found = 0
    for _ in range(300):
        each = rng.choice([-1.0, 0.0, 1.0], size=rows, p=[(often - limit) / 2, 1 - often, (often + limit) / 2])
        found += mcnemar_exact(int((each > 0).sum()), int((each < 0).sum())) < 0.05
    assert 0.75 <= found / 300 <= 0.87


def test_the_sentence_says_what_the_rows_show() -> None:
    assert sentence(CLEAR, *NAMES) == (
        "On these 2,000 rows Chat is 3.2 points more accurate than Base (95 % interval of the difference +1.1 to +5.3, "
        "McNemar p < 0.001): they show that Chat is better here. With 2,000 rows, a difference under 1.6 points would "
        "probably not be seen."
    )
    other = sentence(replace(CLEAR, value=-0.012, interval=Interval(-0.023, -0.001)), *NAMES)
    assert "1.2 points less accurate" in other and "−2.3 to −0.1" in other and "Base is better here" in other
    assert "one under 1.6 points is found less than four times in five, so it may look larger than it is" in other


def test_the_sentence_says_what_the_rows_do_not_show() -> None:
    unclear = replace(CLEAR, rows=60, interval=Interval(-0.05, 0.07), p_value=0.7, detectable=0.09)
    assert "do not show which of the two is better. With 60 rows, a difference under 9.0 points" in sentence(
        unclear, *NAMES
    )
    assert "interval and test disagree" in sentence(replace(CLEAR, p_value=0.06), *NAMES)
    assert "5 rows are too few to show any difference" in sentence(replace(unclear, rows=5, detectable=1.2), *NAMES)
    assert "Chat is as accurate as Base" in sentence(replace(unclear, value=0.0), *NAMES)


def test_p_values_have_the_digits_that_mean_something() -> None:
    assert [format_p(p) for p in (0.0004, 0.0042, 0.042, 1.0)] == ["p < 0.001", "p = 0.004", "p = 0.04", "p = 1.00"]
