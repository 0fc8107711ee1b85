"""How an answer looks on a terminal."""

from __future__ import annotations

import io

from rich.console import Console

from chatglm3.cli.answer import AnswerDisplay, describe_tool_call
from chatglm3.toolcall import parse_tool_call


def show(text: str, step: int = 3) -> str:
    """What stays on a terminal after `text` was written `step` characters at a time."""
    screen = _Screen()
    console = Console(file=screen, force_terminal=True, color_system=None, width=40, height=8, legacy_windows=False)
    with AnswerDisplay(console) as display:
        for start in range(0, len(text), step):
            display.write(text[start : start + step])
    assert display.text == text
    return screen.read()


class _Screen(io.StringIO):
    """Lines of a terminal, with the few movements that a live area makes."""

    def read(self, size: int | None = -1) -> str:
        lines, row = [""], 0
        text = self.getvalue()
        position = 0
        while position < len(text):
            character = text[position]
            if character == "\x1b":
                end = next(i for i in range(position + 2, len(text)) if text[i].isalpha())
                code, position = text[position + 1 : end + 1], end + 1
                if code == "[1A":
                    row -= 1
                elif code == "[2K":
                    lines[row] = ""
                else:
                    assert code in ("[?25l", "[?25h"), code
                continue
            position += 1
            if character == "\n":
                row += 1
                lines += [""] * (row + 1 - len(lines))
            elif character != "\r":
                lines[row] += character
        return "\n".join(line.rstrip() for line in lines).strip("\n")


def test_markdown_is_rendered_and_blocks_stay_apart() -> None:
    shown = show("# 题\n\n一 **二**\n\n- 三\n- 四\n")
    assert [line.strip() for line in shown.splitlines() if line] == ["题", "一 二", "• 三", "• 四"]
    assert "\n\n一 二\n\n" in shown


def test_line_ends_html_and_control_tokens_are_kept() -> None:
    assert show("床前明月光\n疑是地上霜") == "床前明月光\n疑是地上霜"
    assert show("<b>粗</b>\n\n<div>\n\n<|user|>") == "<b>粗</b>\n\n<div>\n\n<|user|>"


def test_a_long_answer_is_shown_once_although_it_is_taller_than_the_screen() -> None:
    paragraphs = [f"段落{i}" for i in range(30)]
    assert show("\n\n".join(paragraphs)).split() == paragraphs
    lines = [f"行{i}" for i in range(30)]
    assert show("\n".join(lines)).split() == lines


def test_a_blank_line_in_a_code_fence_does_not_end_it() -> None:
    shown = show("```python\na = 1\n\nb = 2\n```\n\n完")
    assert "```" not in shown and "a = 1" in shown and "b = 2" in shown and shown.endswith("完")


def test_an_empty_answer_leaves_nothing_on_the_screen() -> None:
    assert show("") == ""


def test_what_would_steer_the_terminal_is_left_out() -> None:
    assert show("a\x1b]52;c;eA==\x07b\x9b2Jc") == "a]52;c;eA==b2Jc"


def test_elsewhere_the_text_is_bare() -> None:
    screen = io.StringIO()
    with AnswerDisplay(Console(file=screen, width=10)) as display:
        display.write("**一** [bold]\x1b[0m ")
        display.write("很长很长很长很长很长")
    assert screen.getvalue() == "**一** [bold]\x1b[0m 很长很长很长很长很长\n"


def test_a_tool_call_that_cannot_be_read_says_why() -> None:
    line = describe_tool_call(parse_tool_call("weather", "```python\nopen('x')\n```"))
    assert line.startswith("tool call: weather: the call cannot be read: ") and "open('x')" in line
