"""The conversation at a real pseudo-terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chatglm3.cli.editor import history_path, new_editor
from chatglm3.tokenizer import Tokenizer
from cli.runner import HELLO, HELLO_ANSWER, NEXT, NEXT_ANSWER

if sys.platform == "win32":
    pytest.skip("Windows has no pseudo-terminals of this kind", allow_module_level=True)

from cli.terminal import CTRL_C, CTRL_D, ENTER, ESC_ENTER, TAB, UP, Terminal

Open = Callable[..., Terminal]


@pytest.fixture
def open_chat(model_dir: Path, tmp_path: Path) -> Iterator[Open]:
    """Begins a conversation with the taught model and waits for the prompt."""
    opened: list[Terminal] = []

    def call(*arguments: str | Path, home: Path = tmp_path) -> Terminal:
        terminal = Terminal(["chat", "--model", model_dir, "--temperature", "0", *arguments], home)
        opened.append(terminal)
        terminal.answer("/help for help")
        return terminal

    yield call
    for terminal in opened:
        terminal.close()


def test_a_conversation(open_chat: Open, model_dir: Path, tmp_path: Path) -> None:
    terminal = open_chat()
    terminal.type(HELLO + ENTER)
    terminal.answer(HELLO_ANSWER)
    terminal.type(NEXT + ENTER)
    terminal.answer(NEXT_ANSWER.replace("**", ""))
    terminal.type(f"/save {tmp_path}/talk.json{ENTER}")
    terminal.answer("4 messages saved")
    terminal.type(f"/clear{ENTER}")
    terminal.answer("forgotten")
    terminal.type(f"/load {tmp_path}/talk.json{ENTER}")
    terminal.answer("4 messages loaded")
    terminal.type(f"/retry{ENTER}")
    terminal.answer(NEXT_ANSWER.replace("**", ""))
    terminal.type(CTRL_D)
    assert terminal.ends() == 0
    talk = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))
    assert [item["content"] for item in talk] == [HELLO, HELLO_ANSWER, NEXT, NEXT_ANSWER]


def test_several_lines_completion_and_earlier_lines(open_chat: Open, tmp_path: Path) -> None:
    terminal = open_chat("--max-new-tokens", "1")
    terminal.type(f"a{ESC_ENTER}b\\{ENTER}c{ENTER}")
    terminal.answer("cut off after 1 tokens")
    terminal.type(f"/sa{TAB}")
    terminal.wait("ve")
    terminal.type(f" {tmp_path}/talk.json{ENTER}")
    terminal.answer("2 messages saved")
    assert json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))[0]["content"] == "a\nb\nc"
    terminal.type(f"half a question{CTRL_C}")
    terminal.answer("half a question")
    terminal.type(f"/sav{ENTER}")
    terminal.answer("unknown command /sav; did you mean /save?")
    terminal.type(f"{UP}{UP}{ENTER}")
    terminal.answer("2 messages saved")
    terminal.type(f"/quit{ENTER}")
    assert terminal.ends() == 0


def test_earlier_lines_are_kept_in_a_private_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    new_editor().history.store_string("一\n二")
    assert list(new_editor().history.load_history_strings()) == ["一\n二"]
    assert history_path().stat().st_mode & 0o777 == 0o600


def test_ctrl_c_stops_the_answer_and_keeps_the_session(
    open_chat: Open, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    terminal = open_chat("--min-new-tokens", "100000", "--banned", str(tiny_tokenizer.assistant_id))
    terminal.type(HELLO + ENTER)
    terminal.wait(HELLO_ANSWER)
    terminal.type(CTRL_C)
    terminal.answer("stopped")
    terminal.type(f"/save {tmp_path}/talk.json{ENTER}")
    terminal.answer("2 messages saved")
    question, answer = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))
    assert question["content"] == HELLO and answer["content"].startswith(HELLO_ANSWER)
    terminal.type(f"/undo{ENTER}")
    terminal.answer("forgotten")
    terminal.type(f"/params min_new_tokens=0{ENTER}")
    terminal.answer("min_new_tokens=0")
    terminal.type(HELLO + ENTER)
    terminal.answer(HELLO_ANSWER)
    terminal.type(CTRL_D)
    assert terminal.ends() == 0


def test_a_home_folder_that_cannot_be_written(open_chat: Open, tmp_path: Path) -> None:
    home = tmp_path / "a file"
    home.write_text("")
    terminal = open_chat(home=home)
    terminal.type(HELLO + ENTER)
    terminal.answer(HELLO_ANSWER)
    terminal.type(CTRL_D)
    assert terminal.ends() == 0


def test_json_needs_a_question(model_dir: Path, tmp_path: Path) -> None:
    terminal = Terminal(["chat", "--json", "--model", model_dir], tmp_path)
    terminal.wait("--json needs a QUESTION")
    assert terminal.ends() == 2
    terminal.close()
