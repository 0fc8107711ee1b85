"""JSON for scripts: one object on one line of standard output."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from chatglm3.answers import Completion
    from chatglm3.messages import ToolCall
    from chatglm3.reply import Reply, Usage


def print_json(record: Mapping[str, Any]) -> None:
    """Print one object; text stays readable and is not escaped to ASCII."""
    typer.echo(json.dumps(record, ensure_ascii=False))


def reply_record(model: str, reply: Reply) -> dict[str, Any]:
    """What `chat --json` prints."""
    return {
        "model": model,
        "text": reply.text,
        "messages": [message.to_dict() for message in reply.messages],
        "tool_calls": [_tool_call(call) for call in reply.tool_calls],
        **_ending(reply),
    }


def completion_record(model: str, completion: Completion) -> dict[str, Any]:
    """What `complete --json` prints."""
    return {"model": model, "text": completion.text, **_ending(completion)}


def _ending(answer: Reply | Completion) -> dict[str, Any]:
    record: dict[str, Any] = {"finish_reason": answer.finish_reason, "usage": _usage(answer.usage)}
    if answer.logprobs is not None:
        record["logprobs"] = [dataclasses.asdict(token) for token in answer.logprobs]
    return record


def _usage(usage: Usage) -> dict[str, int]:
    return {**dataclasses.asdict(usage), "total_tokens": usage.total_tokens}


def _tool_call(call: ToolCall) -> dict[str, Any]:
    arguments = None if call.arguments is None else dict(call.arguments)
    return {"name": call.name, "arguments": arguments, "content": call.content, "error": call.error}
