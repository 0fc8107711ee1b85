"""One turn of a chat: what is asked, and the answer in the form that the official calls return it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from chatglm3.engine.sequence import Generation
from chatglm3.errors import MessageError
from chatglm3.messages import History, Message, Role, as_history, check_history
from chatglm3.reply import Parsed, ReplyParser, official_response
from chatglm3.tokenizer import Tokenizer

Items: TypeAlias = Iterable[Mapping[str, Any] | Message] | None
Response: TypeAlias = str | dict[str, Any]
Answer: TypeAlias = tuple[Response, list[dict[str, Any]]]
"""A response and a new history of official dicts."""


@dataclass(frozen=True)
class Turn:
    """A query and what it follows, as the caller wrote it (`items`) and as messages."""

    items: list[Any]
    messages: History

    @classmethod
    def of(cls, query: str, history: Items, role: str) -> Turn:
        """Check the conversation; `MessageError` says what is wrong with it."""
        items = list(history or ())
        message = Message(cast(Role, role), query)
        if not query and role != "observation":
            raise MessageError("the query is empty; say something")
        messages = (*as_history(items), message)
        check_history(messages)
        return cls([*items, message], messages)

    def answered(self, parsed: Parsed) -> Answer:
        """What the official chat returns; the new history shares nothing with the caller's."""
        return official_response(parsed, self.messages), as_dicts([*self.items, *parsed.messages])


def stream_answers(events: Iterator[int | Generation], turn: Turn, tokenizer: Tokenizer) -> Iterator[Answer]:
    """The answer so far whenever its text has grown by whole characters, and in any case the whole answer last."""
    parser, shown = ReplyParser(tokenizer), ""
    for event in events:
        if isinstance(event, Generation):
            parser.finish()
            yield turn.answered(parser.parsed)
            return
        parser.push(event)
        response, history = turn.answered(parser.parsed)
        if isinstance(response, str) and response and response != shown:
            shown = response
            yield response, history


def as_dicts(items: Iterable[Mapping[str, Any] | Message]) -> list[dict[str, Any]]:
    """Official dicts, those of the caller copied as they are."""
    return [item.to_dict() if isinstance(item, Message) else dict(deepcopy(item)) for item in items]
