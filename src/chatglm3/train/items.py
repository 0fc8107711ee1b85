"""Conversations in the shapes that are in use, as official items: ShareGPT and OpenAI; official ones stay as they are.

ShareGPT's items have `from` and `value`, the others `role` and `content`. OpenAI's calls stand in `tool_calls`, each
with its arguments as JSON text, and the results follow in messages of the role tool. The model writes one call at a
time and reads its result before the next one, so parallel calls become calls in a row, each with its result behind it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any, TypeAlias

from chatglm3.errors import DataError, MessageError
from chatglm3.tables.jsonl import parse_json
from chatglm3.toolcall import format_tool_call
from chatglm3.train.data import as_turns

Item: TypeAlias = dict[str, Any]

_CALL = "call"
_SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": _CALL,
    "observation": "observation",
    "tool": "observation",
}


def official_items(raw: object) -> tuple[Item, ...]:
    """The official items of a conversation (a list, or JSON text of one). Raises `DataError` naming the message.

    Values that are null count as absent: that is how a Parquet file or a CSV cell says so.
    """
    listed = from_json(raw, "the conversation")
    if not isinstance(listed, Sequence) or not all(isinstance(item, Mapping) for item in listed):
        raise DataError("the conversation is not a list of messages")
    items = [{key: value for key, value in item.items() if value is not None} for item in listed]
    return tuple(_from_sharegpt(items) if any("from" in item for item in items) else _from_openai(items))


def offered_tools(raw: object) -> object:
    """Tools as the model is shown them (JSON text is read, OpenAI's wrapping taken off); None if there are none."""
    tools = from_json(raw, "'tools'") if raw else None
    if not tools:
        return None
    if not isinstance(tools, (list, dict)):
        raise DataError(f"'tools' is not a list of tools but {str(tools)[:40]!r}")
    return [_unwrapped(tool) for tool in tools] if isinstance(tools, list) else tools


def from_json(raw: object, what: str) -> Any:
    """The value of JSON text; what is no text is the value itself."""
    return parse_json(raw, what) if isinstance(raw, str) else raw


def _unwrapped(tool: object) -> object:
    if isinstance(tool, Mapping) and isinstance(tool.get("function"), Mapping):
        return tool["function"]
    return tool


@contextmanager
def _message(place: int) -> Iterator[None]:
    """Errors that name the message, counted from 1."""
    try:
        yield
    except (DataError, MessageError) as error:
        raise DataError(f"message {place + 1}: {error}") from None


def _from_sharegpt(items: Sequence[Item]) -> Iterator[Item]:
    for place, item in enumerate(items):
        with _message(place):
            role = _SPEAKERS.get(str(item.get("from")))
            if role is None or "value" not in item:
                raise DataError(f"it needs a 'value', and a 'from' that is one of {', '.join(_SPEAKERS)}")
            value, loss = item["value"], _loss(item)
            if role == _CALL:
                yield from (_call(*named, loss) for named in _written_calls(value))
            else:
                content = _as_result(value) if role == "observation" else value
                yield _checked({"role": role, "content": content, **loss})


def _written_calls(value: object) -> Iterator[tuple[object, object]]:
    """Names and arguments of a ShareGPT function call: an object, or a list of them."""
    written = from_json(value, "the function call")
    for call in written if isinstance(written, list) else [written]:
        if not isinstance(call, Mapping):
            raise DataError('a function call is {"name": …, "arguments": {…}}')
        yield call.get("name"), call.get("arguments", call.get("parameters"))


def _from_openai(items: Sequence[Item]) -> Iterator[Item]:
    place = 0
    while place < len(items):
        item = items[place]
        with _message(place):
            calls = list(_structured_calls(item))
            if not calls or item.get("content"):
                yield _checked(_plain(item))
        place += 1
        if calls:
            results = list(takewhile(_is_result, items[place:]))
            with _message(place):
                yield from _with_results(calls, results)
            place += len(results)


def _structured_calls(item: Item) -> Iterator[tuple[object, Item]]:
    """The ids of the calls in a message, and the calls."""
    calls = item.get("tool_calls") or ([{"function": item["function_call"]}] if item.get("function_call") else [])
    for call in calls:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping):
            raise DataError('a tool call is {"id": …, "function": {"name": …, "arguments": …}}')
        yield call.get("id"), _call(function.get("name"), function.get("arguments"), _loss(item))


def _with_results(calls: Sequence[tuple[object, Item]], results: Sequence[Item]) -> Iterator[Item]:
    """Each call, and its result behind it if there is one."""
    left = list(results)
    for call_id, call in calls:
        yield call
        result = next((r for r in left if r.get("tool_call_id") in (None, call_id)), None)
        if result is not None:
            left.remove(result)
            if "content" not in result:
                raise DataError("the result of a call has no 'content'")
            yield {"role": "observation", "content": _as_result(result["content"])}
    if left:
        raise DataError(f"the result of {left[0].get('tool_call_id')!r} belongs to no call before it")


def _is_result(item: Item) -> bool:
    """Whether this is OpenAI's result of a call, and not the official item that holds a call and its result."""
    fields = set(item)
    is_result = item.get("role") == "function" or bool({"content", "tool_call_id"} & fields)
    return item.get("role") in ("tool", "function") and is_result and not {"parameters", "observation"} & fields


def _plain(item: Item) -> Item:
    """A message without calls."""
    role = item.get("role")
    if _is_result(item):
        if "tool_call_id" in item or "content" not in item:
            raise DataError("a message of the role tool must follow the calls of an assistant")
        return {"role": "observation", "content": _as_result(item["content"])}
    if role == "tool":
        return {**item, "parameters": from_json(item.get("parameters", {}), "'parameters'"), **_loss(item)}
    if "content" not in item:
        raise DataError("it has no 'content'")
    official = {key: value for key, value in item.items() if key in ("metadata", "tools")}
    role = "system" if role == "developer" else role
    return {"role": role, "content": _as_text(item["content"]), **official, **_loss(item)}


def _checked(item: Item) -> Item:
    as_turns((item,))
    return item


def _call(name: object, arguments: object, loss: Item) -> Item:
    given = from_json(arguments, "'arguments'") if arguments else {}
    if not isinstance(name, str) or not name or not isinstance(given, Mapping):
        raise DataError("a call needs a 'name' (a string) and 'arguments' (an object, or JSON text of one)")
    return {"role": "assistant", "metadata": name, "content": format_tool_call(given), **loss}


def _loss(item: Item) -> Item:
    """`loss`, or OpenAI's `weight`, which is 0 or 1."""
    if "loss" in item or "weight" not in item:
        return {"loss": item["loss"]} if "loss" in item else {}
    if item["weight"] not in (0, 1):
        raise DataError(f"'weight' must be 0 or 1, not {item['weight']!r}")
    return {"loss": bool(item["weight"])}


def _as_text(content: object) -> object:
    """OpenAI's list of text parts as one text."""
    if not isinstance(content, list):
        return content
    if not all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in content):
        raise DataError("a part of its content is no text, and ChatGLM3 reads text only")
    return "".join(part["text"] for part in content)


def _as_result(content: object) -> object:
    """A tool's result as text."""
    if isinstance(content, list) and all(isinstance(part, Mapping) and "text" in part for part in content):
        return _as_text(content)
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
