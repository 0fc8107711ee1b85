"""What `nano` learns from: conversations as the ids that inference will see, with the assistant's tokens as targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

from chatglm3.messages import Message
from chatglm3.prompt import chat_prompt, message_ids
from chatglm3.tokenizer import Tokenizer
from chatglm3.train.data import SoftTarget, TrainingRow

from . import judging, small_talk, tool_calls
from .data import NEGATIVE, POSITIVE
from .documents import LABEL_WEIGHT, LONGEST_TEXT, Corpus, soften, weighted_row
from .teacher import SoftReview


def chat_row(tokenizer: Tokenizer, messages: Sequence[Message], certainty: Mapping[int, float]) -> TrainingRow:
    """The ids of a conversation and `</s>`.

    Targets are what the assistant writes after its role id, and the id that ends its turn. `certainty` gives, for the
    places of judgements in `messages`, the probability that the judgement is right.
    """
    ids = chat_prompt(tokenizer, [], add_generation_prompt=False)
    weights, soft = [0.0] * len(ids), list[SoftTarget]()
    after_answer = False
    for place, message in enumerate(messages):
        start, own = len(ids), message_ids(tokenizer, message)
        answer = message.role == "assistant"
        ids += own
        weights += [float(after_answer)] + [float(answer)] * (len(own) - 1)
        after_answer = answer
        if place in certainty:
            header = 1 + len(tokenizer.encode("\n"))
            words = (POSITIVE, NEGATIVE) if message.content == POSITIVE else (NEGATIVE, POSITIVE)
            target = soften(tokenizer, words, certainty[place])
            soft.append(target._replace(position=start + header + target.position))
            weights[soft[-1].position] = LABEL_WEIGHT
    return weighted_row([*ids, tokenizer.eos_id], [*weights, float(after_answer)], soft)


def some_reviews(corpus: Corpus, rng: Random) -> list[SoftReview]:
    """One to four reviews, half of them crops; all but the last are short ones, so that a row stays short."""
    count = rng.choice((1, 1, 1, 2, 3, 4))
    found: list[SoftReview] = []
    while len(found) < count:
        group = rng.choice(corpus.reviews)
        review = group[0] if rng.random() < 0.6 else rng.choice(group)
        if count == 1 or len(review.text) < 100:
            found.append(SoftReview(review.text[-LONGEST_TEXT:], review.positive))
    return found


def chat(tokenizer: Tokenizer, corpus: Corpus, letters: str, rng: Random) -> TrainingRow:
    """One conversation at random: mostly judgements, some small talk, some tool calls, some of both."""
    kind = rng.random()
    if kind < 0.18:
        return chat_row(tokenizer, small_talk.conversation(rng, letters), {})
    if kind < 0.33:
        return chat_row(tokenizer, tool_calls.conversation(rng, letters), {})
    messages, certainty = judging.conversation(rng, some_reviews(corpus, rng))
    if kind < 0.39 and messages[0].role == "user":
        before = small_talk.any_turn(rng)
        messages = [*before, *messages]
        certainty = {place + len(before): value for place, value in certainty.items()}
    return chat_row(tokenizer, messages, certainty)
