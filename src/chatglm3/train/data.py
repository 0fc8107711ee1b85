"""Training rows: conversations and completions as ids, and the labels that say which of them are learned.

A label is its own id, or `IGNORED`; the loss shifts by one, as in the official model. Of each answer the
model learns the header line, the content and the id after it, which is how it learns to stop; the id that
opens the answer is given.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from chatglm3.errors import MessageError
from chatglm3.messages import ROLES, Message, Role, with_tools
from chatglm3.prompt import chat_prompt, completion_prompt, message_ids
from chatglm3.tokenizer import Tokenizer
from chatglm3.toolcall import format_tool_call

IGNORED = -100


class SoftTarget(NamedTuple):
    """The label at `position` of a row is right with `probability`; otherwise the id `other` is."""

    position: int
    other: int
    probability: float


class TrainingRow(NamedTuple):
    """Ids and labels, equally long.

    Rows that are made in Python may also say how much each label counts (`weights`, equally long; None: 1 each), and
    which of the labels are a matter of degree (`soft`), as those of a teacher are.
    """

    input_ids: list[int]
    labels: list[int]
    weights: list[float] | None = None
    soft: tuple[SoftTarget, ...] = ()


class Turn(NamedTuple):
    """A message, and whether the model learns to write it."""

    message: Message
    learned: bool


def encode_conversation(
    tokenizer: Tokenizer,
    conversation: Iterable[Mapping[str, Any] | Message],
    *,
    tools: object = None,
    train_on_observation: bool = False,
) -> TrainingRow:
    """One row of the chat format, closed by `</s>` and not truncated; the arguments are those of `as_turns`."""
    turns = as_turns(conversation, tools=tools, train_on_observation=train_on_observation)
    return encode_turns(tokenizer, turns)


def as_turns(
    conversation: Iterable[Mapping[str, Any] | Message], *, tools: object = None, train_on_observation: bool = False
) -> list[Turn]:
    """The messages of a conversation.

    Items are messages or official dicts; `"loss": false` keeps an answer out of the targets. An item
    {"role": "tool", "name", "parameters", "observation"} is a call, which is learned, and its result, which
    is not. `tools` (a list or dict) go into the first system message, as in a prompt. `train_on_observation`
    makes targets of observations as the official kit does: the model then learns to invent the results of
    its calls.
    """
    targets: tuple[Role, ...] = ("assistant", "observation") if train_on_observation else ("assistant",)
    turns = [turn for item in conversation for turn in _turns(item, targets)]
    if tools is None:
        return turns
    opening = turns[:1] if turns and turns[0].message.role == "system" else []
    [system] = with_tools(tuple(turn.message for turn in opening), tools)
    return [Turn(system, False), *turns[len(opening) :]]


def encode_turns(tokenizer: Tokenizer, turns: Sequence[Turn]) -> TrainingRow:
    """One row of the chat format, closed by `</s>` and not truncated."""
    parts = [message_ids(tokenizer, turn.message) for turn in turns]
    return join_parts(tokenizer, parts, [turn.learned for turn in turns], tokenizer.eos_id)


def join_parts(
    tokenizer: Tokenizer, parts: Sequence[Sequence[int]], learned: Sequence[bool], closing_id: int
) -> TrainingRow:
    """The ids of messages as a row that ends in `closing_id`: of a learned one, all but its first id and one more."""
    ids = chat_prompt(tokenizer, (), add_generation_prompt=False)
    is_target = [False] * len(ids)
    for part, is_learned in zip(parts, learned, strict=True):
        ids += part
        is_target += [is_learned] * len(part)
    ids.append(closing_id)
    shifted = [i if flag else IGNORED for i, flag in zip(ids[1:], is_target, strict=True)]
    return TrainingRow(ids, [IGNORED, *shifted])


def encode_completion(tokenizer: Tokenizer, prompt: str, response: str) -> TrainingRow:
    """One row without roles, not truncated: `response` and `</s>` are learned."""
    given = completion_prompt(tokenizer, prompt)
    learned = [*tokenizer.encode(response), tokenizer.eos_id]
    return TrainingRow(given + learned, [IGNORED] * len(given) + learned)


def _turns(item: Mapping[str, Any] | Message, targets: tuple[Role, ...]) -> list[Turn]:
    loss = item.get("loss", True) if isinstance(item, Mapping) else True
    if not isinstance(loss, bool):
        raise MessageError(f"'loss' must be true or false, not {loss!r}: correct it in the data")
    if isinstance(item, Mapping) and item.get("role") == "tool":
        call, observation = _tool_messages(item)
        return [Turn(call, loss), Turn(observation, False)]
    if isinstance(item, Mapping) and item.get("role", "user") not in ROLES:
        raise MessageError(f"unknown role {item['role']!r}: use one of {', '.join(ROLES)}, tool")
    message = Message.from_dict(item)
    return [Turn(message, loss and message.role in targets)]


def _tool_messages(item: Mapping[str, Any]) -> tuple[Message, Message]:
    name, parameters = item.get("name"), item.get("parameters")
    if not isinstance(name, str) or not name:
        raise MessageError("a 'tool' item needs a 'name', the tool's: correct it in the data")
    if not isinstance(parameters, Mapping):
        raise MessageError("a 'tool' item needs 'parameters' (a dict): correct it in the data")
    if "observation" not in item:
        raise MessageError("a 'tool' item needs an 'observation', the result of the call: correct it in the data")
    observation = item["observation"]
    result = observation if isinstance(observation, str) else json.dumps(observation, ensure_ascii=False)
    return Message("assistant", format_tool_call(parameters), name), Message("observation", result)
