"""`chatglm3 chat`: one question and its answer, or a conversation at the terminal."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import chatglm3
from chatglm3.cli.options import Json, Loading, Model, with_options
from chatglm3.cli.output import print_json, reply_record
from chatglm3.cli.text import read_text, require_utf8
from chatglm3.engine.params import SamplingOptions
from chatglm3.messages import TOOLS_PROMPT, History, Message

if TYPE_CHECKING:
    from chatglm3.chat import ChatGLM


@with_options
def command(
    question: Annotated[str | None, typer.Argument(help="What to ask; piped input comes before it.")] = None,
    *,
    model: Model = "nano",
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    tools: Annotated[Path | None, typer.Option(help="JSON file with the tools that may be called.")] = None,
    as_json: Json = False,
    loading: Loading,
    sampling: SamplingOptions,
) -> None:
    """Ask one question, or hold a conversation at the terminal.

    With a QUESTION, or with input from a pipe or file, the answer is written and the command ends. With both, the
    question is the input followed by a line break and QUESTION. On a terminal without a QUESTION a conversation begins;
    /help there explains it.
    """
    history = _first_messages(system, tools)
    if question is None and sys.stdin.isatty() and sys.stdout.isatty():
        if as_json:
            raise typer.BadParameter("--json needs a QUESTION, or one on standard input")
        _converse(model, loading, history, sampling)
        return
    query = read_text(question, "question")
    with loading.load(model) as glm:
        if as_json:
            print_json(reply_record(model, glm.chat(query, history, **sampling)))
        else:
            _answer(glm, query, history, sampling)


def _first_messages(system: str | None, tools: Path | None) -> History:
    """The system message, if there is one; tools without one get the sentence that the model knows."""
    if system is None and tools is None:
        return ()
    require_utf8(system or "", "system message")
    from chatglm3.cli.history_file import read_json

    return (Message.system(TOOLS_PROMPT if system is None else system, read_json(tools) if tools else None),)


def _answer(glm: ChatGLM, query: str, history: History, sampling: SamplingOptions) -> None:
    from chatglm3.cli.answer import AnswerDisplay, ask, describe_tool_call, new_console

    reply = ask(glm, query, history, sampling, AnswerDisplay(new_console()))
    for call in reply.tool_calls:
        typer.echo(describe_tool_call(call))


def _converse(model: str, loading: Loading, history: History, sampling: SamplingOptions) -> None:
    from chatglm3.cli.answer import new_console
    from chatglm3.cli.editor import new_editor
    from chatglm3.cli.session import Session

    console = new_console()
    with loading.load(model) as glm:
        console.print(_introduction(model, glm), style="dim")
        session, editor = Session(glm, console, history, sampling), new_editor()
        while True:
            try:
                session.handle(editor.prompt())
            except KeyboardInterrupt:
                continue
            except EOFError:
                return


def _introduction(model: str, glm: ChatGLM) -> str:
    network = glm.model
    size = network.config.parameter_count
    kind = "a small demonstration model, " if model in ("nano", "nano-base") else ""
    dtype = str(network.dtype).removeprefix("torch.")
    return (
        f"{model} answers ({kind}{size / 1e6:,.1f} M parameters, {dtype} on {network.device}); "
        f"chatglm3 {chatglm3.__version__}, /help for help"
    )
