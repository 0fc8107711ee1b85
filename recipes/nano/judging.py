"""Conversations in which reviews are judged: many wordings of the task, one answer, `正面` or `负面`."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from chatglm3.messages import Message

from .data import NEGATIVE, POSITIVE
from .phrases import load_phrases
from .teacher import SoftReview

SYSTEM = "你是评论分类器。判断用户给出的评论是正面还是负面，只回答“正面”或“负面”。"  # the documented prompt
PHRASES = load_phrases("judging")
REASONS = {
    POSITIVE: "因为这条评论整体上表达了满意，所以我判断为正面。",
    NEGATIVE: "因为这条评论整体上表达了不满，所以我判断为负面。",
}


def instruction(rng: Random) -> str:
    """The task as a system prompt: the documented one, or one of several hundred others."""
    kind = rng.random()
    if kind < 0.35:
        return SYSTEM
    if kind < 0.42:
        return str(rng.choice(PHRASES["english"]))
    return "".join(rng.choice(PHRASES[part]) for part in ("roles", "tasks", "answers"))


def in_turn(rng: Random, text: str) -> str:
    """The task and the review in one user turn."""
    layout: str = rng.choice(PHRASES["in_turn"])
    return layout.format(task=rng.choice(PHRASES["tasks"]), answer=rng.choice(PHRASES["answers"][:-1]), text=text)


def worn(rng: Random, review: SoftReview) -> SoftReview:
    """The review, sometimes with some characters lost, so that no single one of them can be relied on."""
    if len(review.text) < 12 or rng.random() < 0.6:
        return review
    return SoftReview("".join(letter for letter in review.text if rng.random() > 0.1), review.positive)


def follow_up(rng: Random, label: str) -> list[Message]:
    """A question about the judgement just made, and its answer."""
    question, answer = rng.choice(
        (
            (rng.choice(PHRASES["why"]), REASONS[label]),
            (rng.choice(PHRASES["repeat"]), f"我刚才的判断是{label}。"),
            (rng.choice(PHRASES["sure"]), f"是的，我的判断是{label}。"),
        )
    )
    return [Message("user", question), Message("assistant", answer)]


def conversation(rng: Random, reviews: Sequence[SoftReview]) -> tuple[list[Message], dict[int, float]]:
    """Some reviews judged in turn; also, for the place of each judgement, the probability that it is right."""
    with_system = rng.random() < 0.7
    messages = [Message("system", instruction(rng))] if with_system else []
    certainty: dict[int, float] = {}
    for review in (worn(rng, review) for review in reviews):
        positive = review.positive >= 0.5
        label = POSITIVE if positive else NEGATIVE
        text = rng.choice(PHRASES["wraps"]).format(text=review.text) if with_system else in_turn(rng, review.text)
        messages.append(Message("user", text))
        certainty[len(messages)] = review.positive if positive else 1 - review.positive
        messages.append(Message("assistant", label))
        if rng.random() < 0.12:
            messages += follow_up(rng, label)
    return messages, certainty
