"""What each line of a conversation does; the terminal itself is in test_cli_terminal.py."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

import chatglm3
from chatglm3.chat import ChatGLM
from chatglm3.cli.session import COMMANDS, Session
from chatglm3.messages import History, Message
from cli.runner import CALL, HELLO, HELLO_ANSWER, NEXT, NEXT_ANSWER, TOOLS


@pytest.fixture(scope="module")
def glm(model_dir: Path) -> Iterator[ChatGLM]:
    with chatglm3.load(model_dir) as loaded:
        yield loaded


class Talk:
    """A session whose screen is a string."""

    def __init__(self, glm: ChatGLM, history: History = ()) -> None:
        self.screen = io.StringIO()
        console = Console(file=self.screen, width=200, markup=False, highlight=False, emoji=False)
        self.session = Session(glm, console, history, {"temperature": 0.0})

    def __call__(self, line: str) -> str:
        """Type a line; returns what is shown."""
        before = len(self.screen.getvalue())
        self.session.handle(line)
        return self.screen.getvalue()[before:]

    @property
    def contents(self) -> list[str]:
        return [message.content for message in self.session.history]


@pytest.fixture
def talk(glm: ChatGLM) -> Talk:
    return Talk(glm)


def test_turns_follow_each_other(talk: Talk) -> None:
    assert talk(HELLO) == f"{HELLO_ANSWER}\n"
    assert talk(f"  {NEXT} ") == f"{NEXT_ANSWER}\n"
    assert talk.contents == [HELLO, HELLO_ANSWER, NEXT, NEXT_ANSWER]


def test_empty_lines_do_nothing(talk: Talk) -> None:
    assert talk("") == talk("   ") == ""
    assert talk.contents == []


def test_undo_and_retry(talk: Talk) -> None:
    assert "no question to go back to" in talk("/undo")
    talk(HELLO)
    talk(NEXT)
    assert talk("/retry") == f"{NEXT_ANSWER}\n"
    assert talk.contents == [HELLO, HELLO_ANSWER, NEXT, NEXT_ANSWER]
    assert NEXT in talk("/undo")
    assert talk.contents == [HELLO, HELLO_ANSWER]


def test_a_retry_that_fails_keeps_the_answer(talk: Talk) -> None:
    talk(HELLO)
    talk("/params max_new_tokens=1000000")
    assert "error: " in talk("/retry")
    assert talk.contents == [HELLO, HELLO_ANSWER]


def test_the_system_message_is_set_shown_replaced_and_survives_clear(talk: Talk) -> None:
    assert talk("/system") == "system message: (none)\n"
    talk("/system 一")
    talk("/params max_new_tokens=2")
    assert "cut off after 2 tokens" in talk(HELLO)
    talk("/system 二 三")
    assert talk("/system") == "system message: 二 三\n"
    assert talk.contents[:2] == ["二 三", HELLO] and len(talk.contents) == 3
    talk("/clear")
    assert talk.contents == ["二 三"]


def test_replacing_the_system_message_keeps_its_tools(glm: ChatGLM) -> None:
    talk = Talk(glm, (Message.system("", TOOLS),))
    talk("/system 你是")
    assert talk.session.history == (Message.system("你是", TOOLS),)


def test_a_tool_call_is_shown_and_its_result_is_given_back(glm: ChatGLM) -> None:
    talk = Talk(glm, (Message.system("", TOOLS),))
    shown = talk(NEXT)
    assert shown.startswith('tool call: weather {"city": "北京"}\n') and "/observation" in shown
    assert talk.session.history[-1] == Message("assistant", CALL, "weather")
    talk("/params max_new_tokens=3")
    talk("/observation 22")
    assert talk.session.history[3] == Message("observation", "22")


def test_an_observation_that_nothing_asked_for_is_refused(talk: Talk) -> None:
    assert talk("/observation 22").startswith("error: an observation comes before any assistant turn")
    assert talk.contents == []


def test_save_and_load(talk: Talk, glm: ChatGLM, tmp_path: Path) -> None:
    path = tmp_path / "my talk.json"
    path.write_text("old")
    talk("/system 好")
    talk("/params max_new_tokens=2")
    talk(HELLO)
    assert talk(f"/save {path}") == f"3 messages saved to {path}\n"
    assert [item["role"] for item in json.loads(path.read_text(encoding="utf-8"))] == ["system", "user", "assistant"]
    assert list(tmp_path.iterdir()) == [path]
    other = Talk(glm)
    assert other(f"/load {path}") == f"3 messages loaded from {path}\n"
    assert other.session.history == talk.session.history


def test_a_save_that_fails_leaves_nothing_behind(talk: Talk, tmp_path: Path) -> None:
    (tmp_path / "talk.json").mkdir()
    assert talk(f"/save {tmp_path / 'talk.json'}").startswith("error: ")
    assert talk(f"/save {tmp_path / 'no' / 'talk.json'}").startswith("error: ")
    assert "give the name of a file" in talk("/save")
    assert [path.name for path in tmp_path.iterdir()] == ["talk.json"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "not a JSON file"),
        (b"\xff", "not a JSON file"),
        (b"{}", "a JSON list of messages was expected"),
        ('[["你好", "好"]]'.encode(), "pair of the first ChatGLM"),
        (b'[{"role": "robot", "content": ""}]', "unknown role 'robot'"),
        (b'[{"role": "user"}]', "no 'content'"),
        (b'[{"role": "observation", "content": "22"}]', "before any assistant turn"),
    ],
)
def test_a_bad_file_is_one_line_and_the_conversation_stays(
    talk: Talk, tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "talk.json"
    path.write_bytes(content)
    talk(HELLO)
    shown = talk(f"/load {path}")
    assert shown.startswith("error: ") and str(path) in shown.replace("\n", "") and words in shown.replace("\n", " ")
    assert talk.contents == [HELLO, HELLO_ANSWER]


def test_params_are_shown_set_and_checked(talk: Talk) -> None:
    assert "temperature=0.0  top_k=50" in talk("/params")
    shown = talk('/params top_p=0.5 stop=["。", "a b"] seed=1')
    assert "top_p=0.5" in shown and 'stop=["。", "a b"]' in shown and "seed=1" in shown
    assert "seed=null" in talk("/params seed=null stop=，")
    assert talk(HELLO).startswith(HELLO_ANSWER.partition("，")[0] + "\n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("temprature=1", "did you mean temperature?"),
        ("temperature=-1", "from 0 to 100"),
        ("temperature=hot", "not 'hot'"),
        ("temperature", "name=value"),
        ("stop=5", "stop must be"),
    ],
)
def test_bad_params_change_nothing(talk: Talk, text: str, words: str) -> None:
    before = talk("/params")
    assert words in talk(f"/params {text}")
    assert talk("/params") == before


def test_an_unknown_command_names_the_nearest(talk: Talk) -> None:
    assert talk("/sav talk.json") == "error: unknown command /sav; did you mean /save?\n"
    assert talk("/xyzzy") == "error: unknown command /xyzzy; /help lists the commands\n"


def test_a_space_in_front_lets_a_question_begin_with_a_slash(talk: Talk) -> None:
    talk("/params max_new_tokens=1")
    talk(" /save")
    assert talk.contents[0] == "/save"


def test_help_names_every_command(talk: Talk) -> None:
    page = talk("/help")
    assert all(f"/{name} " in page for name in COMMANDS)
    assert "backslash" in page and "Ctrl-C" in page


def test_quit_ends(talk: Talk) -> None:
    with pytest.raises(EOFError):
        talk("/quit")
