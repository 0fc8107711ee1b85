"""What needs no language model: the majority class, and TF-IDF with logistic regression on the same rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from ..nano.data import Review
from .data import Parts

STRENGTHS = (0.5, 2.0, 8.0, 32.0)
"""Inverse regularisation (C) that is tried."""


@dataclass(frozen=True)
class Baseline:
    """A classifier's name and its answers to the held-out reviews, in their order."""

    name: str
    answers: tuple[str, ...]


def majority(parts: Parts) -> Baseline:
    """The commonest label of the rows to train on."""
    label = Counter(row.label for row in parts.train).most_common(1)[0][0]
    return Baseline(f"always {label}", (label,) * len(parts.held_out))


def linear(parts: Parts) -> Baseline:
    """TF-IDF of one to four characters; the validation part chooses C."""
    fitted = [(strength, _fit(parts.train, strength)) for strength in STRENGTHS]
    strength, model = max(fitted, key=lambda pair: _accuracy(pair[1], parts.validation))
    answers = model.predict([row.text for row in parts.held_out])
    return Baseline(f"TF-IDF, logistic regression (C = {strength:g})", tuple(map(str, answers)))


def _fit(rows: Sequence[Review], strength: float) -> Pipeline:
    features = TfidfVectorizer(analyzer="char", ngram_range=(1, 4), sublinear_tf=True)
    model = make_pipeline(features, LogisticRegression(C=strength, solver="liblinear"))
    return model.fit([row.text for row in rows], [row.label for row in rows])


def _accuracy(model: Pipeline, rows: Sequence[Review]) -> float:
    return float(model.score([row.text for row in rows], [row.label for row in rows]))
