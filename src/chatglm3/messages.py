"""Frozen values of a conversation: `Message`, `ToolCall`, `History`; official dicts in and out.

A history is a tuple of messages. Nothing that takes one of these values changes what it was given.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal, TypeAlias, get_args

from chatglm3.errors import MessageError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
Role = Literal["system", "user", "assistant", "observation"]
ROLES: tuple[Role, ...] = get_args(Role)
TOOLS_PROMPT = "Answer the following questions as best as you can. You have access to the following tools:"
"""The system sentence that the official model was trained to see before a list of tools."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: its role, its header line (`metadata`, a tool's name in a call) and its text.

    `tools` is the JSON text that follows a system message's content in the prompt, None if there is none;
    `Message.system` writes it from a list or dict.
    """

    role: Role
    content: str
    metadata: str = ""
    tools: str | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise MessageError(f"unknown role {self.role!r}: use one of {', '.join(ROLES)}")
        _require_text("content", self.content)
        _require_text("metadata", self.metadata)
        if self.tools is not None:
            _require_json(self.tools)

    @classmethod
    def system(cls, content: str, tools: object = None) -> Message:
        """A system message, with the tools it offers (a list or dict) where they are given."""
        return cls("system", content, tools=None if tools is None else _dump_tools(tools))

    @classmethod
    def from_dict(cls, item: Mapping[str, Any] | Message) -> Message:
        """An official history item ({"role", "content", "metadata", "tools"}; other keys are ignored).

        As in the official code, `"metadata": None` is the word None and `"tools": None` the text null.
        """
        if isinstance(item, Message):
            return item
        if isinstance(item, (tuple, list)):
            raise MessageError(
                "a history item is a (query, response) pair of the first ChatGLM: write each turn as "
                '{"role": "user", "content": query} and {"role": "assistant", "content": response}'
            )
        if not isinstance(item, Mapping):
            raise MessageError(
                f"a history item must be a Message or a dict, not {type(item).__name__}: "
                'write {"role": "user", "content": text}'
            )
        for key in ("role", "content"):
            if key not in item:
                raise MessageError(f"a history item has no {key!r}: it needs both 'role' and 'content'")
        metadata = item.get("metadata", "")
        tools = _dump_tools(item["tools"]) if "tools" in item else None
        return cls(item["role"], item["content"], "None" if metadata is None else metadata, tools)

    def to_dict(self) -> dict[str, Any]:
        """The official dict of this message, a fresh one each time."""
        item: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.metadata or self.role == "assistant":
            item["metadata"] = self.metadata
        if self.tools is not None:
            item["tools"] = json.loads(self.tools)
        return item


History: TypeAlias = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asks for: the tool's name, the call as written, and what was read from it.

    `arguments` is a read-only mapping; it is None where `error` says what is wrong with the call.
    """

    name: str
    content: str
    arguments: Mapping[str, Json] | None = field(hash=False)
    error: str | None

    def __post_init__(self) -> None:
        if self.arguments is not None:
            object.__setattr__(self, "arguments", MappingProxyType(dict(self.arguments)))

    def __reduce__(self) -> tuple[type[ToolCall], tuple[str, str, dict[str, Json] | None, str | None]]:
        # A read-only mapping cannot be pickled or copied.
        arguments = None if self.arguments is None else dict(self.arguments)
        return ToolCall, (self.name, self.content, arguments, self.error)


def as_history(items: Iterable[Mapping[str, Any] | Message] | None) -> History:
    """Messages and official dicts, in order, as a new history; None is an empty one."""
    if isinstance(items, (str, Mapping, Message)) or not isinstance(items, Iterable | None):
        raise MessageError(f"a history must be a list of messages, not {type(items).__name__}: put it in a list")
    return tuple(Message.from_dict(item) for item in items or ())


def with_tools(history: History, tools: object) -> History:
    """The history with `tools` (a list or dict) in its system message, which is made if there is none."""
    if tools is None:
        return history
    dumped = _dump_tools(tools)
    if not history or history[0].role != "system":
        return (Message("system", TOOLS_PROMPT, tools=dumped), *history)
    if history[0].tools not in (None, dumped):
        raise MessageError("the history's system message offers other tools: give tools in one place only")
    return (replace(history[0], tools=dumped), *history[1:])


def check_history(messages: Iterable[Message]) -> None:
    """Refuse an observation that no assistant turn comes before: there is no call whose result it could be.

    Nothing else is refused: two user turns in a row are allowed, as in the official code.
    """
    for message in messages:
        if message.role == "assistant":
            return
        if message.role == "observation":
            raise MessageError(
                "an observation comes before any assistant turn: put the assistant's tool call in front of it"
            )


def _require_text(what: str, value: object) -> None:
    if not isinstance(value, str):
        raise MessageError(f"{what} must be a string, not {type(value).__name__}: convert it before the call")


def _require_json(tools: str) -> None:
    try:
        _require_text("tools", tools)
        json.loads(tools)
    except ValueError:
        raise MessageError(
            "tools must be JSON text: write Message.system(content, tools=...) to give a list or dict"
        ) from None


def _dump_tools(tools: object) -> str:
    try:
        return json.dumps(tools, indent=4, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise MessageError(
            f"tools cannot be written as JSON ({error}): use lists, dicts, strings and numbers"
        ) from None
