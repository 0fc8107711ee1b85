"""Conversations in which reviews are judged: many wordings of the task, one answer, `正面` or `负面`."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from chatglm3.messages import Message

from .data import NEGATIVE, POSITIVE
from .teacher import SoftReview

SYSTEM = "你是评论分类器。判断用户给出的评论是正面还是负面，只回答“正面”或“负面”。"  # the documented prompt
ROLES = "你是评论分类器。|你是一个情感分析助手。|你是一名文本分类专家。|你是情感分类模型。|你负责审核商品评论。|你是客服助手。|||".split(
    "|"
)
TASKS = (
    "判断用户给出的评论是正面还是负面|请判断下面的评论是正面还是负面|请判断评论的情感倾向|对用户的评论进行情感分类|判断评论的情感|"
    "请对以下文本做情感分析|把评论分为正面和负面两类|用户会给你一条评论，请判断它的情感|判断这条评论的态度|分析评论的情感极性|"
    "请给评论分类：正面或负面|用户每次发一条评论，你来判断好坏|请阅读评论并判断作者是否满意"
).split("|")
ANSWERS = (
    "，只回答“正面”或“负面”。|，只回答正面或负面。|，回答“正面”或“负面”。|。只输出“正面”或“负面”两个字，不要解释。|。答案只能是正面或负面。|"
    "，只输出标签：正面/负面。|（正面或负面）。|。请直接回答正面或负面，不要说别的。|。如果是好评回答正面，如果是差评回答负面。|。"
).split("|")
ENGLISH = (
    "Classify the sentiment of the review. Answer 正面 or 负面 only.|You are a sentiment classifier. Reply with 正面 (positive) or 负面 (negative).|"
    "Decide whether the review is positive (正面) or negative (负面)."
).split("|")
IN_TURN = (
    "{task}{answer}\n{text}|{task}{answer}\n评论：{text}|{task}：{text}|{text}\n这条评论是正面还是负面？|{text}\n以上评论是正面还是负面？|"
    "这条评论是正面还是负面？{text}|“{text}”这条评论是正面的还是负面的？|评论：{text}\n情感：|{task}{answer}\n\n{text}|"
    "下面这条评论是好评还是差评？好评回答正面，差评回答负面。\n{text}"
).split("|")
WRAPS = ("{text}", "{text}", "{text}", "评论：{text}", "评论内容：{text}", "“{text}”", "用户评论：{text}")
WHY = "为什么？|为什么这么判断？|你为什么这样认为？|理由是什么？|说说原因|怎么看出来的？|请解释一下|依据是什么？".split(
    "|"
)
REASONS = {
    POSITIVE: "因为这条评论整体上表达了满意，所以我判断为正面。",
    NEGATIVE: "因为这条评论整体上表达了不满，所以我判断为负面。",
}
REPEAT = (
    "你刚才的判断是什么？|重复一下你的判断|刚才那条是正面还是负面？|再说一遍你的答案|上一条评论你判断成什么？|你上一个回答是什么？|"
    "请重复你刚才的答案|刚刚的结果是什么"
).split("|")
SURE = "你确定吗？|真的吗？|确定？|你肯定吗？|没判断错吧？".split("|")


def instruction(rng: Random) -> str:
    """The task as a system prompt: the documented one, or one of several hundred others."""
    kind = rng.random()
    if kind < 0.35:
        return SYSTEM
    if kind < 0.42:
        return rng.choice(ENGLISH)
    return rng.choice(ROLES) + rng.choice(TASKS) + rng.choice(ANSWERS)


def in_turn(rng: Random, text: str) -> str:
    """The task and the review in one user turn."""
    return rng.choice(IN_TURN).format(task=rng.choice(TASKS), answer=rng.choice(ANSWERS[:-1]), text=text)


def worn(rng: Random, review: SoftReview) -> SoftReview:
    """The review, sometimes with some characters lost, so that no single one of them can be relied on."""
    if len(review.text) < 12 or rng.random() < 0.6:
        return review
    return SoftReview("".join(letter for letter in review.text if rng.random() > 0.1), review.positive)


def follow_up(rng: Random, label: str) -> list[Message]:
    """A question about the judgement just made, and its answer."""
    question, answer = rng.choice(
        (
            (rng.choice(WHY), REASONS[label]),
            (rng.choice(REPEAT), f"我刚才的判断是{label}。"),
            (rng.choice(SURE), f"是的，我的判断是{label}。"),
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
        text = rng.choice(WRAPS).format(text=review.text) if with_system else in_turn(rng, review.text)
        messages.append(Message("user", text))
        certainty[len(messages)] = review.positive if positive else 1 - review.positive
        messages.append(Message("assistant", label))
        if rng.random() < 0.12:
            messages += follow_up(rng, label)
    return messages, certainty
