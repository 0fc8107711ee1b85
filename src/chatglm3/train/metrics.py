"""How close a text comes to a reference: ROUGE, BLEU, exact match, and accuracy where the references are labels.

Words are those of jieba, as in the official fine-tuning kit; text in other scripts falls apart at its spaces.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from math import exp, log

from chatglm3.errors import TrainingError

_MOST_LABELS = 20
_ORDERS = 4  # BLEU looks at words, pairs, triples and quadruples


def words(text: str) -> list[str]:
    """The words of a text, its white space left out. Raises `TrainingError` without jieba."""
    return [word for word in _cutter()(text) if not word.isspace()]


def rouge(hypothesis: str, reference: str) -> dict[str, float]:
    """F1 of "rouge-1", "rouge-2" and "rouge-l" in percent; 0 if there is nothing to compare.

    Lin, "ROUGE: A Package for Automatic Evaluation of Summaries" (2004), counted as rouge_chinese does: each different
    word or pair once, and the longest common subsequence of all words. A single word has no pairs, so its rouge-2 is 0.
    """
    found, wanted = words(hypothesis), words(reference)
    scores = {f"rouge-{n}": _set_f1(set(_ngrams(found, n)), set(_ngrams(wanted, n))) for n in (1, 2)}
    scores["rouge-l"] = _f1(common_subsequence(found, wanted), len(found), len(wanted))
    return scores


def bleu4(hypothesis: str, reference: str) -> float:
    """Sentence BLEU-4 from 0 to 1 (Papineni et al., 2002); 0 without a common word.

    An order without a match counts 1/2, the next such order 1/4, and so on: the third smoothing of Chen and Cherry, "A
    Systematic Comparison of Smoothing Techniques for Sentence-Level BLEU" (2014). White space counts as a word where
    jieba leaves it one, as in the official kit.
    """
    found, wanted = _cutter()(hypothesis), _cutter()(reference)
    matches = [_matches(found, wanted, n) for n in range(1, _ORDERS + 1)]
    if not matches[0]:
        return 0.0
    total, misses = 0.0, 0
    for n, count in enumerate(matches, 1):
        misses += count == 0
        total += log((count or 0.5**misses) / max(1, len(found) - n + 1))
    brevity = 1.0 if len(found) > len(wanted) else exp(1 - len(wanted) / len(found))
    return brevity * exp(total / _ORDERS)


def exact_match(hypothesis: str, reference: str) -> bool:
    """Whether the texts are the same but for white space around them."""
    return hypothesis.strip() == reference.strip()


def labels_of(references: Iterable[str]) -> tuple[str, ...]:
    """The labels, in order, if the references look like labels of a classification, or else nothing.

    Labels are at most 20 different texts that come twice each on average.
    """
    texts = [reference.strip() for reference in references]
    labels = sorted(set(texts))
    is_few = 2 <= len(labels) <= _MOST_LABELS and 2 * len(labels) <= len(texts)
    return tuple(labels) if is_few and all(labels) else ()


def label_in(answer: str, labels: Sequence[str]) -> str | None:
    """The label that an answer is, or else the only one that it names; None if it names none or several.

    A label that is part of a longer one which the answer names is not meant.
    """
    if answer.strip() in labels:
        return answer.strip()
    named = [label for label in labels if label in answer]
    meant = [label for label in named if not any(label != other and label in other for other in named)]
    return meant[0] if len(meant) == 1 else None


def accuracy(answers: Sequence[str], references: Sequence[str], labels: Sequence[str]) -> float:
    """The share of answers that give the reference's label."""
    hits = sum(label_in(a, labels) == r.strip() for a, r in zip(answers, references, strict=True))
    return hits / len(references)


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence, all of `a` at once as bits (Hyyrö, 2004)."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    everything = (1 << len(a)) - 1
    rows = everything
    for word in b:
        hits = rows & places.get(word, 0)
        rows = (rows + hits | rows - hits) & everything
    return len(a) - bin(rows).count("1")


@cache
def _cutter() -> Callable[[str], list[str]]:
    try:
        import jieba  # type: ignore[import-untyped]
    except ImportError:
        raise TrainingError("ROUGE and BLEU need jieba; run pip install 'chatglm3[train]'") from None
    jieba.setLogLevel(logging.WARNING)  # it announces its dictionary
    cut: Callable[[str], list[str]] = jieba.lcut
    return cut


def _ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def _matches(found: Sequence[str], wanted: Sequence[str], n: int) -> int:
    """How many n-grams of `found` are in `wanted`, each as often as it is there at most."""
    return (Counter(_ngrams(found, n)) & Counter(_ngrams(wanted, n))).total()


def _set_f1(found: set[tuple[str, ...]], wanted: set[tuple[str, ...]]) -> float:
    return _f1(len(found & wanted), len(found), len(wanted))


def _f1(common: int, found: int, wanted: int) -> float:
    """2 P R / (P + R) in percent, for precision common / found and recall common / wanted."""
    return 200 * common / (found + wanted) if common else 0.0
