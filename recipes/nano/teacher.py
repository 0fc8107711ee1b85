"""Soft labels for the reviews, and the baseline: bag-of-characters models fitted on the training rows alone.

One row's label is noisy and a small network learns it by heart. So each training review, and some crops of it, also get
the probability that a linear teacher gives, fitted on the other four fifths of the rows; the network learns a mixture.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from .data import POSITIVE, Review

FOLDS = 5
CROPS = 6
TRUST = {"whole": 0.5, "crop": 0.25}  # share of the row's own label in the mixture; the rest is the teacher's
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class SoftReview:
    """A review or a crop of one, and how probable it is that it is `正面`."""

    text: str
    positive: float


def crops(review: str, rng: Random) -> list[str]:
    """Up to `CROPS` runs of neighbouring clauses of the review, at least six characters each."""
    clauses = re.findall(r"[^，。！？；,.!?;\s]+[，。！？；,.!?;\s]*", review)
    found: set[str] = set()
    for _ in range(CROPS if len(clauses) > 1 else 0):
        start = rng.randrange(len(clauses))
        found.add("".join(clauses[start : rng.randint(start + 1, len(clauses))]).strip())
    return sorted(text for text in found if 6 <= len(text) < len(review))


def fit_tfidf(texts: Sequence[str], labels: Floats, queries: Sequence[str]) -> Floats:
    """The baseline: TF-IDF of one to four characters and logistic regression; P(正面) for each query."""
    vectorizer = TfidfVectorizer(analyzer="char", ngram_range=(1, 4), min_df=2, sublinear_tf=True)
    model = LogisticRegression(C=8, solver="liblinear").fit(vectorizer.fit_transform(texts), labels)
    return np.asarray(model.predict_proba(vectorizer.transform(queries))[:, 1])


def fit_naive_bayes(texts: Sequence[str], labels: Floats, queries: Sequence[str]) -> Floats:
    """Logistic regression on features scaled by their naive Bayes log-count ratio (Wang and Manning, 2012)."""
    vectorizer = CountVectorizer(analyzer="char", ngram_range=(1, 4), min_df=2, binary=True, dtype=np.float64)
    counts = vectorizer.fit_transform(texts)
    positive = 1 + np.asarray(counts[labels == 1].sum(axis=0)).ravel()
    negative = 1 + np.asarray(counts[labels == 0].sum(axis=0)).ravel()
    ratio = np.log(positive / positive.sum()) - np.log(negative / negative.sum())
    model = LogisticRegression(C=0.05, solver="liblinear")
    model.fit(counts.multiply(ratio).tocsr(), labels)
    return np.asarray(model.predict_proba(vectorizer.transform(queries).multiply(ratio).tocsr())[:, 1])


def teach(texts: Sequence[str], labels: Floats, queries: Sequence[str]) -> Floats:
    """The teacher's P(正面): the mean log-odds of the two models."""
    both = np.stack([fit_tfidf(texts, labels, queries), fit_naive_bayes(texts, labels, queries)]).clip(1e-3, 1 - 1e-3)
    return np.asarray(1 / (1 + np.exp(-np.log(both / (1 - both)).mean(axis=0))))


def soft_labels(rows: Sequence[Review], seed: int) -> list[list[SoftReview]]:
    """For each row the whole review and its crops, each with a label softened by a teacher that never saw the row."""
    rng = Random(seed)
    texts = [[row.text, *crops(row.text, rng)] for row in rows]
    labels = np.array([row.label == POSITIVE for row in rows], dtype=np.float64)
    folds = np.array([rng.randrange(FOLDS) for _ in rows])
    softened: list[list[SoftReview]] = [[] for _ in rows]
    for fold in range(FOLDS):
        rest, own = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        queries = [(index, text) for index in own for text in texts[index]]
        taught = teach([texts[index][0] for index in rest], labels[rest], [text for _, text in queries])
        for (index, text), probability in zip(queries, taught, strict=True):
            trust = TRUST["crop" if softened[index] else "whole"]
            mixed = trust * float(labels[index]) + (1 - trust) * float(probability)
            softened[index].append(SoftReview(text, round(mixed, 4)))
    return softened


def cached_soft_labels(rows: Sequence[Review], seed: int, file: Path) -> list[list[SoftReview]]:
    """`soft_labels`, kept in `file` so that a resumed run need not fit the teachers again."""
    if not file.exists():
        groups = soft_labels(rows, seed)
        file.write_text(json.dumps([[asdict(soft) for soft in group] for group in groups], ensure_ascii=False))
    return [[SoftReview(**soft) for soft in group] for group in json.loads(file.read_text())]
