"""What is odd about an example and no error: each remark is one line, and `train check` says which rows it is about."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise

from chatglm3.messages import Message
from chatglm3.train.data import Turn

TWO_USERS = "two user turns in a row"
NO_TOOLS = "a tool is called and none is offered"
OTHER_TOOL = "a tool is called that is not offered"
EMPTY_ANSWER = "an answer is empty"
_INTERPRETER = "interpreter"  # the official code interpreter is called without being offered


def remarks(turns: Sequence[Turn]) -> Iterator[str]:
    """What is odd about a conversation."""
    messages = [turn.message for turn in turns]
    if any(a.role == b.role == "user" for a, b in pairwise(messages)):
        yield TWO_USERS
    called = {m.metadata for m in messages if m.role == "assistant"} - {"", _INTERPRETER}
    offered = _offered(messages)
    if called and not offered:
        yield NO_TOOLS
    elif called - offered:
        yield OTHER_TOOL
    if any(turn.learned and not turn.message.content.strip() for turn in turns):
        yield EMPTY_ANSWER


def _offered(messages: Sequence[Message]) -> set[str]:
    """The names of all tools that system messages offer."""
    shown = [json.loads(m.tools) for m in messages if m.role == "system" and m.tools is not None]
    tools = [tool for part in shown for tool in (part if isinstance(part, list) else [part])]
    return {str(tool.get("name")) for tool in tools if isinstance(tool, dict)}
