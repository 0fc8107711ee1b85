"""What `nano-base` reads: news, plain reviews, and labelled reviews in the layouts of few-shot prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from chatglm3.prompt import completion_prompt
from chatglm3.tokenizer import Tokenizer
from chatglm3.train.data import IGNORED, SoftTarget, TrainingRow

from .teacher import SoftReview

LONGEST = 400  # tokens of a document
LONGEST_TEXT = 360  # characters of a labelled review, the last ones of longer reviews
LABEL_WEIGHT = 8.0  # a label counts as much as this many other tokens
LAYOUTS = (
    "评论：{text}\n评价：{label}",
    "评论：{text}\n情感：{label}",
    "文本：{text}\n情感：{label}",
    "文本：{text}\n标签：{label}",
    "{text}\n评价：{label}",
    "{text} => {label}",
    "问题：这条评论是{first}还是{second}？{text}\n答案：{label}",
    "内容：{text}\n分类：{label}",
)
WORDS = (("好评", "差评"), ("好评", "差评"), ("正面", "负面"), ("积极", "消极"), ("好", "差"), ("推荐", "不推荐"))
GAPS = ("\n\n", "\n\n", "\n")


@dataclass(frozen=True, slots=True)
class Corpus:
    """All text for the language model."""

    news: Sequence[str]
    reviews: Sequence[Sequence[SoftReview]]


def weighted_row(ids: list[int], weights: list[float], soft: Sequence[SoftTarget] = ()) -> TrainingRow:
    """A row whose targets are the ids with a weight."""
    return TrainingRow(ids, [i if w else IGNORED for i, w in zip(ids, weights, strict=True)], weights, tuple(soft))


def soften(tokenizer: Tokenizer, words: tuple[str, str], probability: float, before: str = "") -> SoftTarget:
    """The first piece after `before` where two `words` part: with `probability` the first word's, else the other's."""
    right, wrong = (tokenizer.encode(before + word) for word in words)
    index = next(i for i, pair in enumerate(zip(right, wrong, strict=False)) if pair[0] != pair[1])
    return SoftTarget(index, wrong[index], probability)


def plain(tokenizer: Tokenizer, text: str) -> TrainingRow:
    """Text as it is, ended by `</s>`."""
    ids = [*completion_prompt(tokenizer, text)[: LONGEST - 1], tokenizer.eos_id]
    return weighted_row(ids, [0.0, 0.0] + [1.0] * (len(ids) - 2))


def few_shot(tokenizer: Tokenizer, reviews: Sequence[SoftReview], rng: Random) -> TrainingRow:
    """Labelled reviews in one layout, as many as fit; the labels weigh more than the other tokens."""
    layout, words, gap = rng.choice(LAYOUTS), rng.choice(WORDS), rng.choice(GAPS)
    first, second = rng.sample(words, 2)
    text, targets = "", list[SoftTarget]()
    for review in reviews:
        positive = review.positive >= 0.5
        label, other = words if positive else words[::-1]
        before = layout.format(text=review.text[-LONGEST_TEXT:], label="", first=first, second=second)
        before = text + gap * bool(text) + before
        if text and len(tokenizer.encode(before)) > LONGEST - 8:
            break
        certainty = review.positive if positive else 1 - review.positive
        targets.append(soften(tokenizer, (label, other), certainty, before))
        text = before + label
    ids = [*completion_prompt(tokenizer, text)[: LONGEST - 1], tokenizer.eos_id]
    weights = [0.0, 0.0] + [1.0] * (len(ids) - 2)
    shifted = [t._replace(position=t.position + 2) for t in targets if t.position + 2 < len(ids) - 1]
    for target in shifted:
        weights[target.position] = LABEL_WEIGHT
    return weighted_row(ids, weights, shifted)


def document(tokenizer: Tokenizer, corpus: Corpus, rng: Random) -> TrainingRow:
    """One document at random: news (a fifth of the tokens, about), a plain review, or labelled reviews."""
    kind = rng.random()
    if kind < 0.15:
        return plain(tokenizer, rng.choice(corpus.news))
    if kind < 0.25:
        return plain(tokenizer, rng.choice(corpus.reviews)[0].text)
    groups = rng.choices(corpus.reviews, k=rng.choice((1, 2, 3, 4, 6, 8)))
    return few_shot(tokenizer, [group[0] if rng.random() < 0.6 else rng.choice(group) for group in groups], rng)
