"""Shows an answer as it is written: Markdown on a terminal, the bare text elsewhere."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from types import TracebackType

from markdown_it import MarkdownIt
from rich.console import Console, RenderableType
from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text

from chatglm3.answers import Chunk
from chatglm3.chat import ChatGLM
from chatglm3.engine.params import SamplingOptions
from chatglm3.messages import History, Role, ToolCall
from chatglm3.reply import Reply

_SECONDS_BETWEEN_REFRESHES = 0.08
_FENCE = re.compile(r"^ {0,3}(```|~~~)", re.MULTILINE)
_BLOCK_END = re.compile(r"\n[ \t]*\n(?=\S)")
# Characters that would steer the terminal: C0 (but for tab and line feed), delete and C1.
_STEERING = dict.fromkeys([*set(range(0x20)) - {0x09, 0x0A}, *range(0x7F, 0xA0)])


def new_console() -> Console:
    """Standard output; text is printed as it is, without markup of our own."""
    return Console(markup=False, highlight=False, emoji=False)


def ask(
    glm: ChatGLM, query: str, history: History, sampling: SamplingOptions, display: AnswerDisplay, role: Role = "user"
) -> Reply:
    """Ask and show the answer as it comes; with beam search, once it is finished."""
    chunks: Iterator[Chunk]
    if sampling.get("num_beams", 1) > 1:
        whole = glm.chat(query, history, role=role, **sampling)
        chunks = iter([Chunk(whole.text, whole)])
    else:
        chunks = glm.stream_chat(query, history, role=role, **sampling)
    reply = None
    with display:
        for chunk in chunks:
            display.write(chunk.text)
            reply = chunk.reply
    assert reply is not None  # the last chunk has it
    return reply


def describe_tool_call(call: ToolCall) -> str:
    """A tool call in one line: the name and its arguments as JSON, or what is wrong with it."""
    if call.arguments is None:
        return harmless(f"tool call: {call.name}: {call.error}: {call.content}")
    return harmless(f"tool call: {call.name} {json.dumps(dict(call.arguments), ensure_ascii=False)}")


def harmless(text: str) -> str:
    """The text without the characters that would steer a terminal."""
    return text.translate(_STEERING)


class AnswerDisplay:
    """The answer on the screen, shown in a `with` block; `text` is what has been written so far."""

    def __init__(self, console: Console) -> None:
        self.text = ""
        self._console = console
        self._open = ""  # the block that still grows; everything before it is printed for good
        self._refreshed = 0.0
        self._ended = False
        self._live: Live | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            self._live = Live(console=console, auto_refresh=False, get_renderable=self._growing)

    def __enter__(self) -> AnswerDisplay:
        if self._live is not None:
            self._live.start(refresh=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._ended = True
        if self._live is not None:
            self._live.stop()
        elif self.text and not self.text.endswith("\n"):
            self._console.file.write("\n")
        self._console.file.flush()

    def write(self, text: str) -> None:
        """Show more of the answer."""
        self.text += text
        shown = harmless(text) if self._console.is_terminal else text
        if self._live is None:
            self._console.file.write(shown)
            self._console.file.flush()
        else:
            self._open += shown
            self._print_finished_blocks()
            self._refresh(self._live)

    def _print_finished_blocks(self) -> None:
        """A live area taller than the screen cannot be redrawn, so only the last block of the text is kept in it."""
        end = _last_block_start(self._open)
        if end:
            finished, self._open = self._open[:end], self._open[end:]
            self._console.print(render_markdown(finished), Text(), sep="\n")

    def _refresh(self, live: Live) -> None:
        now = time.monotonic()
        if now - self._refreshed > _SECONDS_BETWEEN_REFRESHES:
            self._refreshed = now
            live.refresh()

    def _growing(self) -> RenderableType:
        return render_markdown(self._open) if self.text or self._ended else Text("…", style="dim")


def render_markdown(text: str) -> Markdown:
    """Markdown as a chat shows it: line ends are kept, HTML is shown as it is written, links show their address."""
    markdown = Markdown("", hyperlinks=False)
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["strikethrough", "table"])
    markdown.parsed = parser.parse(text.replace("\n", "  \n"))
    return markdown


def _last_block_start(text: str) -> int:
    """Where the last Markdown block begins; 0 if there is one only, or a code fence is open."""
    for match in reversed(list(_BLOCK_END.finditer(text))):
        if len(_FENCE.findall(text[: match.end()])) % 2 == 0:
            return match.end()
    return 0
