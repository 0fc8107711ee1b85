"""A tiny model that was taught a short conversation, on disk, and ways to run the command line on it."""

from __future__ import annotations

import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from chatglm3.cli import execute
from chatglm3.messages import Message
from chatglm3.model.checkpoint import save_model
from chatglm3.prompt import chat_prompt, completion_prompt, message_ids
from chatglm3.tokenizer import Tokenizer
from cli.runner import CALL, CONTINUATION, HELLO, HELLO_ANSWER, NEXT, NEXT_ANSWER, PROMPT, TOOLS, Result
from tiny_model import teach, tiny_config, tiny_model


@pytest.fixture(scope="session")
def model_dir(tiny_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose context is so long that an answer can be stopped long before its end."""
    folder = tmp_path_factory.mktemp("models") / "taught"
    tokenizer = Tokenizer.from_pretrained(tiny_tokenizer_dir)
    model = tiny_model(tiny_config(tokenizer.vocab_size, context=200_000))
    teach(model, _lessons(tokenizer))
    save_model(model, folder)
    shutil.copy(tiny_tokenizer_dir / "tokenizer.model", folder)
    return folder


def _lessons(tokenizer: Tokenizer) -> list[tuple[list[int], list[int]]]:
    first = (Message("user", HELLO),)
    second = (*first, Message("assistant", HELLO_ANSWER), Message("user", NEXT))
    with_tools = (Message.system("", TOOLS), Message("user", NEXT))
    answers = ((first, Message("assistant", HELLO_ANSWER)), (second, Message("assistant", NEXT_ANSWER)))
    lessons = [
        (chat_prompt(tokenizer, asked), [*message_ids(tokenizer, answer)[1:], tokenizer.user_id])
        for asked, answer in (*answers, (with_tools, Message("assistant", CALL, "weather")))
    ]
    continuation = [*tokenizer.encode_continuation(CONTINUATION), tokenizer.eos_id]
    return [*lessons, (completion_prompt(tokenizer, PROMPT), continuation)]


@pytest.fixture
def tools_file(tmp_path: Path) -> Path:
    """The tools that the model was taught to call."""
    path = tmp_path / "tools.json"
    path.write_text(json.dumps(TOOLS), encoding="utf-8")
    return path


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], model_dir: Path) -> Callable[..., Result]:
    """Runs a command line in this process, with `stdin` piped in; the taught model is the default one."""
    monkeypatch.setenv("CHATGLM3_MODEL", str(model_dir))

    def call(*arguments: str | Path, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capfd.readouterr()
        status = execute([str(argument) for argument in arguments])
        return Result(status, *capfd.readouterr())

    return call
