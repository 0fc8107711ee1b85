"""The conversation behind the interactive `chatglm3 chat`: what each line that is typed does.

The history is a tuple that is replaced, never changed. An answer stopped by Ctrl-C stays in it as far as it was shown;
if nothing had been shown yet, its question is left out as well.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple, cast

from rich.console import Console

from chatglm3.chat import ChatGLM
from chatglm3.cli.answer import AnswerDisplay, ask, describe_tool_call, harmless
from chatglm3.cli.history_file import load_history, save_history
from chatglm3.engine.params import SamplingOptions, SamplingParams
from chatglm3.errors import ChatGLMError, MessageError
from chatglm3.messages import History, Message, Role
from chatglm3.reply import Reply


class Session:
    """A conversation with `glm`, shown on `console`."""

    def __init__(self, glm: ChatGLM, console: Console, history: History, sampling: SamplingOptions) -> None:
        """`history` may hold a system message; `sampling` are the parameters to begin with."""
        self.history = history
        self._glm, self._console, self._sampling = glm, console, sampling

    def handle(self, line: str) -> None:
        """Ask a question or run a /command; a failure is one line and leaves the conversation as it was.

        Raises EOFError for /quit.
        """
        text = line.strip()
        try:
            if line.startswith("/"):
                name, _, argument = text[1:].partition(" ")
                _find_command(name).run(self, argument.strip())
            elif text:
                self._ask(text)
        except (ChatGLMError, OSError) as error:
            self._note(f"error: {' '.join(str(error).split())}", style="red")

    def _ask(self, text: str, role: Role = "user", after: History | None = None) -> None:
        history = self.history if after is None else after
        display = AnswerDisplay(self._console)
        try:
            reply = ask(self._glm, text, history, self._sampling, display, role)
        except KeyboardInterrupt:
            self._keep_interrupted((*history, Message(role, text)), display.text.strip())
        else:
            self.history = reply.history
            self._show_ending(reply)

    def _keep_interrupted(self, asked: History, shown: str) -> None:
        if shown:
            self.history = (*asked, Message("assistant", shown))
        self._note("stopped" if shown else "stopped before the answer began; the question is not kept")

    def _show_ending(self, reply: Reply) -> None:
        for call in reply.tool_calls:
            self._console.print(describe_tool_call(call), style="cyan")
        if reply.finish_reason == "tool_call":
            self._note("give the tool's result with /observation TEXT")
        elif reply.finish_reason == "length":
            self._note(
                f"cut off after {reply.usage.completion_tokens} tokens: max_new_tokens or the context is used up"
            )
        elif not reply.text:
            self._note("the answer is empty")

    def _system(self, text: str) -> None:
        old = self.history[0] if self.history and self.history[0].role == "system" else None
        if not text:
            self._note(f"system message: {old.content if old else '(none)'}")
        else:
            new = replace(old, content=text) if old else Message("system", text)
            self.history = (new, *self.history[1 if old else 0 :])

    def _observation(self, text: str) -> None:
        self._ask(text, role="observation")

    def _clear(self, _: str) -> None:
        self.history = tuple(message for message in self.history[:1] if message.role == "system")
        self._note("the conversation is forgotten; the system message stays" if self.history else "forgotten")

    def _undo(self, _: str) -> None:
        question, self.history = self._last_turn()
        self._note(f"forgotten: {_shorten(question.content)}")

    def _retry(self, _: str) -> None:
        question, before = self._last_turn()
        self._ask(question.content, after=before)

    def _last_turn(self) -> tuple[Message, History]:
        """The last question, and what came before it."""
        turns = [i for i, message in enumerate(self.history) if message.role == "user"]
        if not turns:
            raise MessageError("there is no question to go back to")
        return self.history[turns[-1]], self.history[: turns[-1]]

    def _save(self, file: str) -> None:
        path = _path(file)
        save_history(self.history, path)
        self._note(f"{len(self.history)} messages saved to {path}")

    def _load(self, file: str) -> None:
        path = _path(file)
        self.history = load_history(path)
        self._note(f"{len(self.history)} messages loaded from {path}")

    def _params(self, text: str) -> None:
        options = {**self._sampling, **_parse_params(text)}
        params = SamplingParams.of(options)
        self._sampling = cast(SamplingOptions, options)
        self._console.print("  ".join(f"{name}={_dump(value)}" for name, value in vars(params).items()))

    def _help(self, _: str) -> None:
        for name, command in COMMANDS.items():
            self._console.print(f"  {f'/{name} {command.usage}':<26}{command.help}")
        self._console.print(_KEYS)

    def _quit(self, _: str) -> None:
        raise EOFError

    def _note(self, text: str, style: str = "dim") -> None:
        self._console.print(harmless(text), style=style)


class _Command(NamedTuple):
    usage: str
    help: str
    run: Callable[[Session, str], None]


COMMANDS = {
    "system": _Command("[TEXT]", "set the system message, or show it", Session._system),
    "clear": _Command("", "forget the conversation, keep the system message", Session._clear),
    "undo": _Command("", "forget the last question and its answer", Session._undo),
    "retry": _Command("", "ask the last question again", Session._retry),
    "observation": _Command("TEXT", "give the result of a tool call", Session._observation),
    "save": _Command("FILE", "write the conversation as JSON", Session._save),
    "load": _Command("FILE", "go on with a conversation from a file", Session._load),
    "params": _Command("[NAME=VALUE ...]", "set sampling parameters, and show all", Session._params),
    "help": _Command("", "show this", Session._help),
    "quit": _Command("", "leave (or Ctrl-D)", Session._quit),
}
_KEYS = """\
  Enter sends. Esc Enter, or Enter after a backslash, begins a new line.
  Up and Down walk through earlier lines, Ctrl-R searches them.
  Ctrl-C stops an answer: what was shown of it stays in the conversation.
  While you type, Ctrl-C clears the line.
  A space in front lets a question begin with a slash."""


def _find_command(name: str) -> _Command:
    if name not in COMMANDS:
        near = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean /{near[0]}?" if near else "/help lists the commands"
        raise MessageError(f"unknown command /{name}; {hint}")
    return COMMANDS[name]


def _path(file: str) -> Path:
    if not file:
        raise MessageError("give the name of a file, as in /save talk.json")
    return Path(file).expanduser()


def _parse_params(text: str) -> dict[str, Any]:
    """`name=value` pairs; a value is JSON, or else text."""
    pairs = [pair.partition("=") for pair in re.split(r"\s+(?=\w+=)", text) if pair]
    if not all(equals for _, equals, _ in pairs):
        raise MessageError("write parameters as name=value, for example /params temperature=0 seed=1")
    return {name.strip(): _parse_value(value) for name, _, value in pairs}


def _parse_value(value: str) -> Any:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _dump(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:40]}…"
