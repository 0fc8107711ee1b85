"""`chat` and `complete` with one question: arguments, pipes, JSON, tools."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from chatglm3.tokenizer import Tokenizer
from cli.runner import CALL, CONTINUATION, HELLO, HELLO_ANSWER, NEXT, PROMPT, Result, endless_chat, run_process

GREEDY = ("--temperature", "0")
Cli = Callable[..., Result]


def test_one_question(cli: Cli) -> None:
    assert cli("chat", HELLO, *GREEDY) == Result(0, f"{HELLO_ANSWER}\n", "")


def test_a_piped_question_in_a_real_process(model_dir: Path) -> None:
    result = run_process("chat", "--model", model_dir, *GREEDY, stdin=f"{HELLO}\n".encode(), LC_ALL="C")
    assert result == Result(0, f"{HELLO_ANSWER}\n", "")


def test_a_byte_order_mark_and_windows_line_end_are_not_part_of_the_question(cli: Cli) -> None:
    assert cli("chat", *GREEDY, stdin=b"\xef\xbb\xbf" + HELLO.encode() + b"\r\n").out == f"{HELLO_ANSWER}\n"


def test_piped_input_comes_before_the_question(cli: Cli) -> None:
    options = ("--max-new-tokens", "20", *GREEDY)
    joined = cli("chat", "二 二", *options, stdin="一\n".encode())
    assert joined.out == cli("chat", "一\n二 二", *options).out != cli("chat", "二 二\n一", *options).out


@pytest.mark.parametrize("command", ["chat", "complete"])
@pytest.mark.parametrize(("stdin", "words"), [(b"", "is empty"), (b" \n", "is empty"), (b"ab\xff", "byte 2 is 0xff")])
def test_bad_input_is_one_line(cli: Cli, command: str, stdin: bytes, words: str) -> None:
    result = cli(command, stdin=stdin)
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith("error: ") and result.err.count("\n") == 1 and words in result.err


def test_json(cli: Cli, model_dir: Path) -> None:
    result = cli("chat", HELLO, "--json", "--logprobs", "1", *GREEDY)
    record = json.loads(result.out)
    assert (result.status, result.err, result.out.count("\n")) == (0, "", 1)
    assert (record["model"], record["text"], record["finish_reason"]) == (str(model_dir), HELLO_ANSWER, "stop")
    assert record["messages"] == [{"role": "assistant", "metadata": "", "content": HELLO_ANSWER}]
    assert record["tool_calls"] == []
    usage = record["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert len(record["logprobs"]) == usage["completion_tokens"]


def test_beam_search_is_shown_when_it_is_finished(cli: Cli) -> None:
    assert cli("chat", HELLO, "--num-beams", "2") == Result(0, f"{HELLO_ANSWER}\n", "")


def test_a_tool_call_is_shown_with_its_arguments(cli: Cli, tools_file: Path) -> None:
    asked = ("chat", NEXT, "--system", "", "--tools", tools_file, *GREEDY)
    assert cli(*asked) == Result(0, 'tool call: weather {"city": "北京"}\n', "")
    record = json.loads(cli(*asked, "--json").out)
    assert record["finish_reason"] == "tool_call"
    assert record["tool_calls"] == [{"name": "weather", "arguments": {"city": "北京"}, "content": CALL, "error": None}]


@pytest.mark.parametrize(("content", "words"), [(None, "No such file"), ("[", "not a JSON file")])
def test_tools_that_cannot_be_read(cli: Cli, tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "tools.json"
    if content is not None:
        path.write_text(content)
    result = cli("chat", NEXT, "--tools", path)
    assert (result.status, result.err.count("\n")) == (1, 1) and words in result.err and str(path) in result.err


def test_a_prompt_that_is_too_long(cli: Cli) -> None:
    result = cli("chat", HELLO * 20, "--max-context", "32")
    assert (result.status, result.err.count("\n")) == (1, 1) and "more than the context of 32" in result.err


def test_complete(cli: Cli) -> None:
    assert cli("complete", PROMPT, *GREEDY) == Result(0, f"{CONTINUATION}\n", "")
    assert cli("complete", *GREEDY, stdin=PROMPT.encode()).out == f"{CONTINUATION}\n"


def test_complete_stops_and_reports(cli: Cli) -> None:
    record = json.loads(cli("complete", PROMPT, *GREEDY, "--stop", "，", "--stop", "。", "--json").out)
    assert (record["text"], record["finish_reason"]) == (CONTINUATION.partition("，")[0], "stop")
    cut = json.loads(cli("complete", PROMPT, *GREEDY, "--max-new-tokens", "1", "--json").out)
    assert (cut["finish_reason"], cut["usage"]["completion_tokens"]) == ("length", 1)


def test_ctrl_c_ends_with_status_130_and_no_traceback(model_dir: Path, tiny_tokenizer: Tokenizer) -> None:
    with endless_chat(model_dir, tiny_tokenizer) as process:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=240)
    assert (process.returncode, errors) == (130, b"")
