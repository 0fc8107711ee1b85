"""A row of data to an example, whichever of the shapes in use it has: conversations for Chat, plain text for Base.

Its field names decide which shape a row has. Fields that the shape does not know are left alone; `unused_fields` names
them. A field that is null counts as absent, as an empty CSV cell does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from chatglm3.errors import DataError, MessageError
from chatglm3.messages import Message, check_history
from chatglm3.train.data import as_turns
from chatglm3.train.items import from_json, offered_tools, official_items

Kind: TypeAlias = Literal["chat", "base"]


class NoTargetError(DataError):
    """A row that has the field of an answer, and no answer in it."""


@dataclass(frozen=True)
class ChatExample:
    """A conversation: official items, each with its `loss` if it has one, and the tools that are offered in it."""

    messages: tuple[Mapping[str, Any] | Message, ...]
    tools: object | None = None


@dataclass(frozen=True)
class TextExample:
    """A prompt and how it goes on; plain text has an empty prompt."""

    prompt: str
    response: str


Example: TypeAlias = ChatExample | TextExample


def parse_row(row: Mapping[str, object]) -> Example:
    """What a row says. Raises `DataError` with what the row is and what was expected."""
    return _shape(row).build(row)


def unused_fields(row: Mapping[str, object]) -> tuple[str, ...]:
    """The fields of a row that hold something and say nothing to the model."""
    shape = _shape(row)
    return tuple(sorted(str(name) for name in _present(row) if name not in (*shape.required, *shape.optional)))


def kind_of(example: Example) -> Kind:
    """Which of the models an example is for."""
    return "chat" if isinstance(example, ChatExample) else "base"


@dataclass(frozen=True)
class _Shape:
    """A row has it if it has the required fields."""

    required: tuple[str, ...]
    optional: tuple[str, ...]
    build: Callable[[Mapping[str, object]], Example]


def _conversation(name: str) -> Callable[[Mapping[str, object]], ChatExample]:
    def build(row: Mapping[str, object]) -> ChatExample:
        if row.get(name) is None:
            raise NoTargetError(f"it has no {name!r}")
        return _chat_example(official_items(row[name]), row)

    return build


def _instruction(row: Mapping[str, object]) -> ChatExample:
    """Alpaca: the question is the instruction and, on a new line, the input."""
    question = "\n".join(filter(None, (_text(row, "instruction"), _text(row, "input"))))
    pairs = [*_history(row.get("history")), (question, _answer(row, "output"))]
    roles = ("user", "assistant")
    items = [{"role": role, "content": text} for pair in pairs for role, text in zip(roles, pair, strict=True)]
    return _chat_example(tuple(items), row)


def _completion(prompt: str, response: str) -> Callable[[Mapping[str, object]], TextExample]:
    return lambda row: TextExample(_text(row, prompt), _answer(row, response))


def _plain_text(row: Mapping[str, object]) -> TextExample:
    return TextExample("", _answer(row, "text"))


_BESIDE = ("system", "tools", "functions")
_SHAPES = (
    _Shape(("conversations",), _BESIDE, _conversation("conversations")),
    _Shape(("messages",), _BESIDE, _conversation("messages")),
    _Shape(("instruction", "output"), ("input", "history", *_BESIDE), _instruction),
    _Shape(("context", "target"), (), _completion("context", "target")),
    _Shape(("prompt", "response"), (), _completion("prompt", "response")),
    _Shape(("prompt", "completion"), (), _completion("prompt", "completion")),
    _Shape(("text",), (), _plain_text),
)


def _shape(row: Mapping[str, object]) -> _Shape:
    """The first shape whose fields hold something, or else the first whose fields are there."""
    for names in (_present(row), set(row)):
        for shape in _SHAPES:
            if names.issuperset(shape.required):
                return shape
    fields = ", ".join(map(repr, row)) or "none"
    expected = "; ".join(" and ".join(shape.required) for shape in _SHAPES)
    raise DataError(f"its fields ({fields}) are those of no known shape; expected one of: {expected}")


def _present(row: Mapping[str, object]) -> set[str]:
    return {name for name, value in row.items() if value is not None}


def _chat_example(items: tuple[Mapping[str, Any], ...], row: Mapping[str, object]) -> ChatExample:
    system = _text(row, "system")
    if system and items and items[0].get("role") == "system":
        raise DataError("it has a 'system' beside a conversation that begins with a system message; keep one of them")
    messages = ({"role": "system", "content": system}, *items) if system else items
    example = ChatExample(messages, offered_tools(row.get("tools") or row.get("functions")))
    try:
        check_history(turn.message for turn in as_turns(messages, tools=example.tools))
    except MessageError as error:
        raise DataError(str(error)) from None
    return example


def _history(raw: object) -> Iterator[tuple[str, str]]:
    """Alpaca's earlier turns, pairs of a question and its answer."""
    pairs = from_json(raw, "'history'") if raw else []
    if not isinstance(pairs, Sequence):
        raise DataError("'history' is not a list of pairs of a question and its answer")
    for pair in pairs:
        if not isinstance(pair, Sequence) or isinstance(pair, str) or [type(text) for text in pair] != [str, str]:
            raise DataError(f"'history' has {str(pair)[:40]!r} where a question and its answer were expected")
        yield pair[0], pair[1]


def _answer(row: Mapping[str, object], name: str) -> str:
    if row.get(name) is None:
        raise NoTargetError(f"it has no {name!r}")
    return _text(row, name)


def _text(row: Mapping[str, object], name: str) -> str:
    """A field's text; a number is written out, as in a CSV file."""
    value = row.get(name)
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise DataError(f"{name!r} must be text, not {type(value).__name__}")
    return str(value)
