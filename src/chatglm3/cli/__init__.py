"""The command `chatglm3`: finds the subcommand, and turns every expected failure into one line.

Each subcommand is the function `command`, or the group `app`, in the module of its name. Only the module that is asked
for is imported, and none of them imports torch before it starts to work. Exit status: 0, 2 for a usage error, 130 for
Ctrl-C, 1 for any other failure.
"""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer

import chatglm3
from chatglm3.errors import ChatGLMError

COMMANDS = (
    "chat",
    "complete",
    "run",
    "classify",
    "evaluate",
    "train",
    "merge",
    "info",
    "download",
    "quantize",
    "doctor",
)

# A public road to typer's usage error, which has moved between versions (typer 0.26 brought its own copy of click).
_UsageError: Any = typer.BadParameter.__base__


def main() -> None:
    """Run the command line of this process and exit."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    warnings.showwarning = _show_warning  # type: ignore[assignment]  # it takes less on purpose
    sys.exit(execute(sys.argv[1:]))


def execute(arguments: Sequence[str]) -> int:
    """Run one command line; returns its exit status."""
    try:
        status = _app(arguments)(arguments, prog_name="chatglm3", standalone_mode=False)
    except _UsageError as error:
        return _fail(f"{error.format_message()} (see {_help_command(error)})", status=2)
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except (ChatGLMError, OSError, MemoryError) as error:
        return _fail(_describe(error), status=1)
    return status if isinstance(status, int) else 0


def _app(arguments: Sequence[str]) -> typer.Typer:
    """All commands for the help page and for shell completion; just the one when its name comes first."""
    names = arguments[:1] if arguments and arguments[0] in COMMANDS else COMMANDS
    app = typer.Typer(
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=True)(_chatglm3)
    for name in names:
        module = import_module(f"chatglm3.cli.{name}")
        if hasattr(module, "app"):  # a command with commands of its own
            app.add_typer(module.app, name=name)
        else:
            app.command(name)(module.command)
    return app


def _chatglm3(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Run ChatGLM3 models: chat with them, complete text, look at their files and at this machine."""
    if version:
        typer.echo(f"chatglm3 {chatglm3.__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _fail(message: str, status: int) -> int:
    print(f"error: {_one_line(message)}", file=sys.stderr)
    return status


def _one_line(message: str) -> str:
    """A message may quote a file: what a terminal would obey (ESC, changes of direction) is spelled out."""
    text = " ".join(message.split())
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def _help_command(error: Any) -> str:
    return f"{error.ctx.command_path if error.ctx else 'chatglm3'} --help"


def _describe(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or "not enough memory; use a smaller model or context"


def _show_warning(message: Warning | str, *_: object) -> None:
    print(f"warning: {_one_line(str(message))}", file=sys.stderr)
