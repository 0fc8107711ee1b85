"""Tool calls as the model writes them, `tool_call(name=value, ...)` in a fence: read as literals, not run."""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Mapping
from keyword import iskeyword
from threading import Lock
from typing import Any

from chatglm3.errors import MessageError
from chatglm3.messages import Json, ToolCall

_parsing = Lock()  # catch_warnings changes a process-wide list


def parse_tool_call(name: str, content: str) -> ToolCall:
    """Read a call's text. Total: whatever is wrong with it becomes `ToolCall.error`.

    As in the official code the first and last line are dropped, whatever they are, and a dict of arguments
    may stand in place of the call. Values become what JSON makes of them: a tuple is a list, a dict's keys
    are strings.
    """
    try:
        return ToolCall(name, content, _arguments(_expression(content)), None)
    except SyntaxError as error:
        reason = error.msg
    except (ValueError, TypeError) as error:
        reason = str(error)
    except (RecursionError, MemoryError):
        reason = "it is nested too deeply"
    return ToolCall(name, content, None, f"the call cannot be read: {reason}")


def format_tool_call(arguments: Mapping[str, Json]) -> str:
    """The text of a call with these arguments, as the model was trained to write it."""
    for name in arguments:
        if not name.isidentifier() or iskeyword(name):
            raise MessageError(
                f"the argument name {name!r} cannot be written in a call: use letters, digits and underscores"
            )
    written = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    return f"```python\ntool_call({written})\n```"


def _expression(content: str) -> ast.expr:
    lines = content.strip().split("\n")[1:]
    try:
        return _parse("\n".join(lines[:-1]))
    except SyntaxError as error:
        try:
            return _parse("\n".join(lines))  # the closing fence is missing
        except SyntaxError:
            raise error from None


def _parse(source: str) -> ast.expr:
    if not source.strip():
        raise SyntaxError("it is empty")
    with _parsing, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as an unknown escape in a string
        return ast.parse(source.strip(), mode="eval").body


def _arguments(node: ast.expr) -> dict[str, Json]:
    if isinstance(node, ast.Dict):
        arguments: dict[str, Json] = _literal(node, "the dict of arguments")
        return arguments
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "tool_call"):
        raise ValueError("it is not tool_call(name=value, ...)")
    named = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg is not None}
    if node.args or len(named) < len(node.keywords):
        raise ValueError("every argument needs a name of its own, as in tool_call(name=value)")
    return {name: _literal(value, f"the value of {name!r}") for name, value in named.items()}


def _literal(node: ast.expr, what: str) -> Any:
    try:
        value = ast.literal_eval(node)
        return json.loads(json.dumps(value, ensure_ascii=False, allow_nan=False).encode())
    except (ValueError, TypeError):
        raise ValueError(f"{what} is not a plain string, number, list, dict, True, False or None") from None
