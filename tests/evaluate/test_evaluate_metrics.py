"""The measures: against values computed by hand, and against scikit-learn where it is installed."""

from __future__ import annotations

import numpy as np
import pytest

from chatglm3.evaluate.metrics import (
    NO_LABEL,
    Bin,
    accuracy,
    class_scores,
    confusion_matrix,
    expected_calibration_error,
    macro_f1,
    reliability,
    wilson_interval,
)

TRUTH = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 0, 1, 1, NO_LABEL, 0])


def test_the_measures_of_six_answers_by_hand() -> None:
    matrix = confusion_matrix(TRUTH, PREDICTED, 3)
    assert matrix.tolist() == [[2, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0]]
    assert accuracy(TRUTH, PREDICTED) == 0.5
    first, second, third = class_scores(matrix, ["a", "b", "c"])
    assert (first.precision, first.recall, first.f1) == pytest.approx((2 / 3, 2 / 3, 2 / 3))
    assert (second.precision, second.recall, second.f1) == pytest.approx((0.5, 0.5, 0.5))
    assert (third.label, third.precision, third.recall, third.f1, third.support) == ("c", 0, 0, 0, 1)
    assert macro_f1(matrix) == pytest.approx((2 / 3 + 0.5 + 0) / 3)


@pytest.mark.parametrize("labels", [2, 3, 7])
def test_the_measures_are_those_of_scikit_learn(labels: int) -> None:
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(labels)
    truth, predicted = rng.integers(0, labels, 300), rng.integers(NO_LABEL, labels, 300)
    matrix = confusion_matrix(truth, predicted, labels)
    known = list(range(labels))
    expected = sklearn.precision_recall_fscore_support(truth, predicted, labels=known, zero_division=0)
    found = [(c.precision, c.recall, c.f1, c.support) for c in class_scores(matrix, [str(i) for i in known])]
    assert np.allclose(found, np.array(expected).T)
    assert macro_f1(matrix) == pytest.approx(
        sklearn.f1_score(truth, predicted, labels=known, average="macro", zero_division=0)
    )
    assert accuracy(truth, predicted) == pytest.approx(sklearn.accuracy_score(truth, predicted))
    with_none = sklearn.confusion_matrix(truth, np.where(predicted < 0, labels, predicted), labels=[*known, labels])
    assert (matrix == with_none[:labels]).all()


def test_the_calibration_error_of_five_answers_by_hand() -> None:
    bins = reliability(np.array([0.55, 0.6, 0.95, 0.95, 1.0]), np.array([True, False, True, True, False]))
    assert len(bins) == 10 and sum(part.count for part in bins) == 5
    assert bins[5] == Bin(0.5, 0.6, 2, pytest.approx(0.575), 0.5)  # 0.6 is in the bin that ends there
    assert bins[9] == Bin(0.9, 1.0, 3, pytest.approx(2.9 / 3), pytest.approx(2 / 3))
    assert expected_calibration_error(bins) == pytest.approx((2 * 0.075 + 3 * 0.3) / 5)


def test_answers_that_are_as_sure_as_they_are_right_have_no_calibration_error() -> None:
    assert expected_calibration_error(reliability(np.full(4, 0.75), np.array([True, True, True, False]))) == 0
    assert expected_calibration_error(reliability(np.array([]), np.array([], dtype=np.bool_))) == 0


def test_the_interval_of_a_share() -> None:
    """Wilson's interval of 45 in 50, as published calculators give it; and at the ends, where simpler ones fail."""
    found = wilson_interval(0.9, 50)
    assert (found.low, found.high) == pytest.approx((0.7864, 0.9565), abs=5e-5)
    assert wilson_interval(1, 10).high == pytest.approx(1) and wilson_interval(1, 10).low == pytest.approx(
        0.7225, abs=5e-5
    )
    assert wilson_interval(0, 10).low == pytest.approx(0, abs=1e-12)
