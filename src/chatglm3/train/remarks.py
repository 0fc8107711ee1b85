"""What is odd about an example and no error: each remark is one line, and `train check` says which rows it is about."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise

from chatglm3.messages import Message
from chatglm3.toolcall import parse_tool_call
from chatglm3.train.data import Turn

TWO_USERS = "two user turns in a row"
NO_TOOLS = "a tool is called and none is offered"
OTHER_TOOL = "a tool is called that is not offered"
NO_RESULT = "a call without a result"
UNREADABLE_CALL = "a call that is not written as tool_call(name=value)"
EMPTY_ANSWER = "an answer is empty"
_END = Message("user", "")  # stands for what comes behind the last message
_INTERPRETER = "interpreter"  # the official code interpreter is called without being offered


def remarks(turns: Sequence[Turn]) -> Iterator[str]:
    """What is odd about a conversation."""
    messages = [turn.message for turn in turns]
    if any(a.role == b.role == "user" for a, b in pairwise(messages)):
        yield TWO_USERS
    calls = list(filter(_is_call, messages))
    called = {m.metadata for m in calls} - {_INTERPRETER}
    offered = _offered(messages)
    if called and not offered:
        yield NO_TOOLS
    elif called - offered:
        yield OTHER_TOOL
    if any(_is_call(m) and after.role != "observation" for m, after in pairwise((*messages, _END))):
        yield NO_RESULT
    if any(m.metadata != _INTERPRETER and parse_tool_call(m.metadata, m.content).error for m in calls):
        yield UNREADABLE_CALL
    if any(turn.learned and not turn.message.content.strip() for turn in turns):
        yield EMPTY_ANSWER


def _is_call(message: Message) -> bool:
    return message.role == "assistant" and bool(message.metadata)


def _offered(messages: Sequence[Message]) -> set[str]:
    """The names of all tools that system messages offer."""
    shown = [json.loads(m.tools) for m in messages if m.role == "system" and m.tools is not None]
    tools = [tool for part in shown for tool in (part if isinstance(part, list) else [part])]
    return {str(tool.get("name")) for tool in tools if isinstance(tool, dict)}
