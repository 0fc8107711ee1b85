"""The line that a question is typed into: editing, several lines, earlier lines, completion of /commands."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import typer
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from chatglm3.cli.session import COMMANDS


def new_editor() -> PromptSession[str]:
    """An editor for one session. `prompt` raises KeyboardInterrupt for Ctrl-C and EOFError for Ctrl-D."""
    return PromptSession(
        "> ",
        multiline=True,
        prompt_continuation="  ",
        key_bindings=_key_bindings(),
        history=_open_history(),
        completer=_CommandCompleter(),
        complete_while_typing=False,
    )


def history_path() -> Path:
    """Where earlier lines are kept: the state folder of the XDG convention, or what macOS and Windows have for it."""
    if sys.platform in ("darwin", "win32"):
        return Path(typer.get_app_dir("chatglm3")) / "history"
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "chatglm3" / "history"


class _PrivateHistory(FileHistory):
    """Earlier lines in a file; a disk that is full later on costs the line and not the session."""

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string)


def _open_history() -> History:
    """The user's history file, readable by them alone; only in memory if it cannot be written."""
    try:
        path = history_path()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with path.open("r+b"):
            return _PrivateHistory(str(path))
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        return InMemoryHistory()


def _key_bindings() -> KeyBindings:
    bindings = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)

    @bindings.add("enter", filter=typing)
    def _send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.current_line_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter", filter=typing)
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


class _CommandCompleter(Completer):
    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:  # noqa: ARG002
        typed = document.text_before_cursor
        if typed.startswith("/"):
            names = [f"/{name}" for name in COMMANDS if f"/{name}".startswith(typed)]
            yield from (Completion(name, start_position=-len(typed)) for name in names)
