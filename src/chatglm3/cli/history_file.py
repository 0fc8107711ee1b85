"""A conversation as a file: a JSON list of official dicts ({"role", "content", ...})."""

from __future__ import annotations

import json
import os
from pathlib import Path

from chatglm3.errors import MessageError
from chatglm3.messages import History, as_history, check_history


def save_history(history: History, path: Path) -> None:
    """Write the file in one step: a failure leaves an older file as it was. Raises OSError."""
    text = json.dumps([message.to_dict() for message in history], ensure_ascii=False, indent=2)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.incomplete")
    try:
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_history(path: Path) -> History:
    """Read the file. Raises OSError, or `MessageError` if it holds no conversation."""
    data = read_json(path)
    if not isinstance(data, list):
        raise MessageError(f"{path} is not a conversation: a JSON list of messages was expected")
    try:
        history = as_history(data)
        check_history(history)
    except MessageError as error:
        raise MessageError(f"{path} is not a conversation: {error}") from None
    return history


def read_json(path: Path) -> object:
    """What a JSON file holds. Raises OSError, or `MessageError` if it is not JSON."""
    try:
        value: object = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise MessageError(f"{path} is not a JSON file ({error})") from None
    return value
