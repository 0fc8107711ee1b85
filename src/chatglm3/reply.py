"""Token ids to messages: the only place where an answer is parsed, whole or as it streams. It never raises.

An answer is one or more segments with the assistant's control id between them. A segment is a header line and
a content: a blank header makes it plain text, any other header names the tool it calls, and a segment of one
line has no header. A thought before a tool call is therefore a plain segment of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from chatglm3.messages import History, Message, ToolCall
from chatglm3.tokenizer import StreamDecoder, Tokenizer
from chatglm3.toolcall import parse_tool_call

FinishReason: TypeAlias = Literal["stop", "length", "tool_call", "deadline", "cancelled"]
_YEAR_PLACEHOLDER, _YEAR = "[[训练时间]]", "2023年"  # the model writes the first for the second


@dataclass(frozen=True, slots=True)
class Parsed:
    """An answer's messages as a history stores them, its tool calls, and all of its plain text."""

    messages: History
    tool_calls: tuple[ToolCall, ...]
    text: str

    def ending_at(self, text: str) -> Parsed:
        """The answer whose plain text a stop string cut to `text`; the messages after the cut are dropped."""
        kept: list[Message] = []
        room = len(text)
        for message in self.messages:
            shown = "" if message.metadata else _shown(message)
            if not message.metadata and len(shown) >= room:
                kept.append(replace(message, content=shown[:room].strip()))
                break
            kept.append(message)
            room -= len(shown) + bool(shown)  # and the newline that joins it to the next
        calls = sum(bool(message.metadata) for message in kept)
        return Parsed(tuple(kept), self.tool_calls[:calls], text)


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts; `cached_tokens` are those of the prompt that did not have to be computed."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Reply:
    """What one call of chat gives: `history` holds the query and the answer's `messages` at its end.

    It unpacks like the official pair: `response, history = reply`.
    """

    text: str
    messages: History
    tool_calls: tuple[ToolCall, ...]
    history: History = field(repr=False)
    finish_reason: FinishReason
    usage: Usage
    logprobs: tuple[Any, ...] | None = None

    @property
    def message(self) -> Message:
        """The answer's last message."""
        return self.messages[-1]

    @property
    def response(self) -> str | dict[str, Any]:
        """What the official chat returns for this answer."""
        return official_response(Parsed(self.messages, self.tool_calls, self.text), self.history)

    def __iter__(self) -> Iterator[Any]:
        yield self.response
        yield self.history


def parse_text(output: str) -> Parsed:
    """Parse decoded text; the literal `<|assistant|>` separates segments, as in the official code."""
    return _parse_segments(output.split("<|assistant|>"))


def parse_ids(tokenizer: Tokenizer, ids: Iterable[int]) -> Parsed:
    """Parse generated ids; only the control id separates segments, other control ids stand for no text."""
    parser = ReplyParser(tokenizer)
    for token_id in ids:
        parser.push(token_id)
    parser.finish()
    return parser.parsed


def official_response(parsed: Parsed, history: Sequence[Message]) -> str | dict[str, Any]:
    """What the official chat returns for the last segment.

    Plain text is a string. A call is {"name", "parameters"} if the first message is a system message with
    tools, and {"name", "content"} if not, or if the call is malformed (where the official code raises).
    """
    last = parsed.messages[-1]
    if not last.metadata:
        return _shown(last)
    call = parsed.tool_calls[-1]
    offers_tools = bool(history) and history[0].role == "system" and history[0].tools is not None
    if offers_tools and call.arguments is not None:
        return {"name": call.name, "parameters": dict(call.arguments)}
    return {"name": call.name, "content": call.content}


class ReplyParser:
    """Parses an answer as its ids arrive; the pieces of text it gives are together `parse_ids(...).text`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._segments: list[str] = []
        self._has_shown = False
        self._begin_segment()

    def push(self, token_id: int) -> str:
        """The new text to show: "" in a header line or a call, or while it may still be stripped."""
        if token_id == self._tokenizer.assistant_id:
            text = self._end_segment()
            self._begin_segment()
            return text
        if self._tokenizer.n_pieces <= token_id:
            return ""
        return self._show(self._visible.push(self._receive(self._decoder.push(token_id))))

    def finish(self) -> str:
        """The rest of the text to show, once no id follows."""
        return self._end_segment()

    @property
    def parsed(self) -> Parsed:
        """The answer as far as it has come."""
        return _parse_segments(self._segments)

    def _begin_segment(self) -> None:
        self._segments.append("")
        self._decoder = StreamDecoder(self._tokenizer)
        self._visible = _VisibleText()
        self._separator = "\n" if self._has_shown else ""

    def _end_segment(self) -> str:
        rest = self._receive(self._decoder.flush())
        return self._show(self._visible.push(rest) + self._visible.finish())

    def _receive(self, text: str) -> str:
        self._segments[-1] += text
        return text

    def _show(self, text: str) -> str:
        if not text:
            return ""
        shown = self._separator + text
        self._separator, self._has_shown = "", True
        return shown


class _VisibleText:
    """What to show of one segment as it arrives: nothing of a call, a plain content stripped."""

    def __init__(self) -> None:
        self._waiting = ""
        self._is_plain: bool | None = None  # unknown until the header line ends
        self._begun = False

    def push(self, text: str) -> str:
        self._waiting += text
        if self._is_plain is None and "\n" in text:
            header, _, self._waiting = self._waiting.partition("\n")
            self._is_plain = not header.strip()
        return self._release(final=False) if self._is_plain else ""

    def finish(self) -> str:
        return "" if self._is_plain is False else self._release(final=True)

    def _release(self, *, final: bool) -> str:
        text = self._waiting if self._begun else self._waiting.lstrip()
        text = _with_year(text.rstrip() if final else text)
        end = len(text) - (0 if final else _undecided_tail(text))
        text, self._waiting = text[:end], text[end:]
        self._begun |= bool(text)
        return text


def _undecided_tail(text: str) -> int:
    """Characters at the end that may still be stripped, or grow into the placeholder."""
    for size in range(len(_YEAR_PLACEHOLDER) - 1, 0, -1):
        if text.endswith(_YEAR_PLACEHOLDER[:size]):
            return size
    return len(text) - len(text.rstrip())


def _parse_segments(segments: Sequence[str]) -> Parsed:
    messages = tuple(_parse_segment(segment) for segment in segments)
    calls = tuple(parse_tool_call(m.metadata, m.content) for m in messages if m.metadata)
    shown = (_shown(m) for m in messages if not m.metadata)
    return Parsed(messages, calls, "\n".join(filter(None, shown)))


def _parse_segment(text: str) -> Message:
    """Header and content are stripped, so that encoding the message gives the ids that the model wrote."""
    header, newline, content = text.partition("\n")
    if not newline:
        header, content = "", text
    return Message("assistant", content.strip(), header.strip())


def _shown(message: Message) -> str:
    return _with_year(message.content)


def _with_year(text: str) -> str:
    return text.replace(_YEAR_PLACEHOLDER, _YEAR)
