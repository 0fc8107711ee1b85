"""The dispatcher: it stays light, and every expected failure is one line with the right exit status."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

import chatglm3
from chatglm3.cli import COMMANDS, options
from chatglm3.cli.text import require_utf8
from chatglm3.engine.params import SamplingParams
from chatglm3.errors import MessageError
from chatglm3.tokenizer import Tokenizer
from cli.runner import Result, endless_chat, run_process

Cli = Callable[..., Result]

ASSETS = Path(chatglm3.__file__).parent / "assets"
LIGHT = """
import sys
from chatglm3.cli import execute
assert execute({arguments!r}) == {status}
heavy = {{"torch", "numpy", "prompt_toolkit", "huggingface_hub", "rich"}} & sys.modules.keys()
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    ("arguments", "status"), [(["--help"], 0), ([], 0), (["chat", "--help"], 0), (["chat", "x", "--top-k", "-1"], 2)]
)
def test_help_and_usage_errors_import_nothing_heavy(arguments: list[str], status: int) -> None:
    script = LIGHT.format(arguments=arguments, status=status)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


def test_help_names_every_command(cli: Cli) -> None:
    result = cli("--help")
    assert result.status == 0
    assert all(f"\n  {name} " in result.out for name in COMMANDS)
    assert cli("-h").out == result.out == cli().out


def test_version() -> None:
    assert run_process("--version") == Result(0, f"chatglm3 {chatglm3.__version__}\n", "")


def test_every_sampling_parameter_is_an_option(cli: Cli) -> None:
    names = [field.name for field in fields(SamplingParams)]
    assert list(options._SAMPLING) == names
    for command in ("chat", "complete"):
        page = cli(command, "--help").out
        assert all(f"--{name.replace('_', '-')}" in page for name in names)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["chta"], "Did you mean 'chat'?"),
        (["--nonsense"], "--nonsense"),
        (["chat", "--temprature", "1"], "--temperature"),
        (["chat", "x", "--temperature", "-1"], "temperature must be a number from 0 to 100, not -1.0"),
        (["chat", "x", "--temperature", "nan"], "not nan"),
        (["chat", "x", "--top-k", "many"], "--top-k"),
        (["chat", "x", "--quantize", "5"], "use 8 or 4, not 5"),
        (["chat", "x", "--stop", ""], "stop must be non-empty strings"),
        (["chat", "x", "--max-context", "0"], "--max-context"),
        (["complete", "a", "b"], "b"),
        (["info"], "model"),
    ],
)
def test_usage_errors_are_one_line_and_status_2(cli: Cli, arguments: list[str], words: str) -> None:
    _assert_one_line(cli(*arguments), 2, words, "--help")


@pytest.mark.skipif(not (ASSETS / "nano").is_dir(), reason="the bundled models are absent")
def test_the_bundled_models_are_the_default(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHATGLM3_MODEL")
    options = ("--temperature", "0", "--max-new-tokens", "40", "--json")
    for command, model in (("chat", "nano"), ("complete", "nano-base")):
        record = json.loads(cli(command, "你好", *options).out)
        assert record["model"] == model and record["text"]


def test_unknown_model_is_one_line_and_status_1(cli: Cli) -> None:
    _assert_one_line(cli("chat", "x", "--model", "nowhere"), 1, "nowhere", "use nano")


def test_a_model_file_that_is_missing(cli: Cli, tmp_path: Path) -> None:
    _assert_one_line(cli("complete", "x", "--model", tmp_path), 1, str(tmp_path))


def test_what_a_terminal_would_obey_is_spelled_out(cli: Cli, tmp_path: Path) -> None:
    result = cli("info", tmp_path / "\u202e\u001b[31m模型")
    assert result.status == 1 and "模型" in result.err and "\\u202e\\x1b[31m" in result.err
    assert "\x1b" not in result.err and "\u202e" not in result.err


def test_a_base_model_that_is_asked_to_chat_is_warned_about_in_one_line(model_dir: Path, tmp_path: Path) -> None:
    base = tmp_path / "tiny-base"
    base.symlink_to(model_dir)
    result = run_process("chat", "你好", "--model", base, "--temperature", "0", "--max-new-tokens", "2")
    assert result.status == 0
    assert result.err.startswith("warning: ") and result.err.count("\n") == 1 and "Base" in result.err


def test_a_reader_that_goes_away_leaves_no_traceback(model_dir: Path, tiny_tokenizer: Tokenizer) -> None:
    with endless_chat(model_dir, tiny_tokenizer) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=240) == 1


def test_arguments_that_are_not_utf8_are_refused() -> None:
    with pytest.raises(MessageError, match="the question is not valid UTF-8"):
        require_utf8("caf\udce9", "question")


def _assert_one_line(result: Result, status: int, *words: str) -> None:
    assert result.status == status
    assert result.out == ""
    assert result.err.startswith("error: ") and result.err.endswith("\n") and result.err.count("\n") == 1
    assert all(word in result.err for word in words), result.err
