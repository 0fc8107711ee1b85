"""`chatglm3 train check`: what it prints, and one line for data that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from cli.runner import Result, run_process

TOOLS = [{"name": "weather"}]
QUESTION, ANSWER = {"role": "user", "content": "你好"}, {"role": "assistant", "content": "好。"}
CALL = {"role": "tool", "name": "weather", "parameters": {"city": "北京"}, "observation": "晴"}
LONG = {"role": "user", "content": "天气" * 300}
ROWS = [
    {"messages": [QUESTION, CALL, ANSWER], "tools": TOOLS},
    {"messages": [QUESTION, ANSWER]},
    {"messages": [QUESTION, ANSWER], "id": 3},
    {"messages": [QUESTION]},
    {"messages": [QUESTION, QUESTION, CALL]},
    {"messages": [LONG, ANSWER]},
    {"messages": [QUESTION, {**LONG, "role": "assistant"}]},
]


def write(path: Path, rows: Iterable[object]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write(tmp_path / "data.jsonl", ROWS)


def test_a_file_with_a_bit_of_everything(cli: Callable[..., Result], data: Path) -> None:
    result = cli("train", "check", data, "--max-length", "200", "--row", "2")
    assert (result.status, result.err) == (0, "")
    for line in (
        "data.jsonl: 5 conversations to train on",
        "shortened   1 row (6): the beginning is cut off, and a larger length keeps it",
        "dropped     1 row (4): no answer to learn",
        "dropped     1 row (7): more than 200 tokens without any context that can be cut",
        "remark      1 row (3): the field 'id' is not used",
        "remark      1 row (5): two user turns in a row",
        "remark      1 row (5): a tool is called and none is offered",
        "repeated    2 rows say the same: 2, 3",
    ):
        assert line in result.out.splitlines()
    assert "█" in result.out
    assert "<|user|> \\n 你好\n<|assistant|>« \\n 好。</s>»" in result.out


def test_colours_on_a_terminal(cli: Callable[..., Result], data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    result = cli("train", "check", data, "--row", "2")
    assert "\x1b[1;32m \\n 好。</s>\x1b[0m" in result.out and "«" not in result.out.splitlines()[-1]


def test_validation_rows(cli: Callable[..., Result], data: Path, tmp_path: Path) -> None:
    new = {"messages": [{"role": "user", "content": "今天天气怎么样？"}, ANSWER]}
    val = write(tmp_path / "val.jsonl", [new, ROWS[1]])
    result = cli("train", "check", data, "--val", val, "--show", "0")
    assert "overlap     1 row (2): the question is also in data.jsonl" in result.out
    assert "val.jsonl: 2 conversations to validate with" in result.out.splitlines()
    base = write(tmp_path / "base.jsonl", [{"text": "a"}])
    result = cli("train", "check", data, "--val", base)
    assert (result.status, result.out) == (1, "")
    assert "base.jsonl, row 1: it is plain text, and the rows must be conversations" in result.err


def test_a_text_in_pieces(cli: Callable[..., Result], tmp_path: Path) -> None:
    path = write(tmp_path / "text.jsonl", [{"text": "天气很好。" * 30}])
    result = cli("train", "check", path, "--max-length", "40", "--row", "1")
    pieces = result.out.count("\nrow 1, ")
    assert pieces > 1 and f"text.jsonl: {pieces} rows of plain text to train on" in result.out
    assert "split       1 row (1): too long for one piece, and all of it is learned in several" in result.out
    record = json.loads(cli("train", "check", path, "--max-length", "40", "--json").out)
    assert (record["rows"], record["split"], record["dropped"]) == (pieces, [1], {})
    assert "text.jsonl: 1 row of plain text to train on" in cli("train", "check", path).out


def test_json(cli: Callable[..., Result], data: Path) -> None:
    result = cli("train", "check", data, "--json", "--max-length", "200", "--val", data)
    record = json.loads(result.out)
    assert (record["kind"], record["rows"], record["shortened"]) == ("chat", 5, [6])
    assert record["duplicates"] == [[2, 3]] and sum(count for _, count in record["histogram"]) == 5
    assert record["dropped"]["no answer to learn"] == [4]
    assert record["validation"]["rows"] == 5 and record["validation_rows_in_train"] == [1, 2, 3, 5, 6]


def test_chat_data_for_a_base_model_and_the_reverse(
    cli: Callable[..., Result], data: Path, tmp_path: Path, model_dir: Path
) -> None:
    base_dir = tmp_path / "tiny-base"
    base_dir.mkdir()
    for name in ("config.json", "tokenizer.model"):
        (base_dir / name).write_bytes((model_dir / name).read_bytes())
    text = write(tmp_path / "text.jsonl", [{"prompt": "a", "response": "b"}])
    result = cli("train", "check", data, "--model", base_dir)
    assert result.status == 1 and "5 conversations" not in result.err
    assert f"error: the data are conversations, and {base_dir} is a Base model" in result.err
    assert result.err.count("\n") == 1 and "conversations to train on" in result.out
    result = cli("train", "check", text)
    assert result.status == 1 and "error: the data are plain text, and " in result.err
    assert "name the columns instruction and output" in result.err
    assert cli("train", "check", text, "--model", base_dir).status == 0


def test_one_clear_line(cli: Callable[..., Result], data: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "a"}\n{"text": \n', encoding="utf-8")
    for arguments, problem in (
        ([broken], "broken.jsonl, line 2 is not JSON"),
        ([tmp_path / "absent.json"], "absent.json: No such file or directory"),
        ([tmp_path / "absent.txt"], "absent.txt: No such file or directory"),
        ([data, "--row", "4"], "row 4 is dropped: no answer to learn"),
        ([data, "--row", "99"], "row 99 does not exist"),
        ([data, "--max-length", "8"], "no row can be used"),
        ([data, "--model", tmp_path / "nothing"], "nothing: no such folder"),
    ):
        result = cli("train", "check", *arguments)
        assert (result.status, result.out, result.err.count("\n")) == (1, "", 1)
        assert problem in result.err
    assert cli("train", "check", data, "--max-length", "7").status == 2


def test_no_torch_is_loaded(data: Path, model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')", encoding="utf-8")
    result = run_process("train", "check", data, PYTHONPATH=str(tmp_path), CHATGLM3_MODEL=str(model_dir))
    assert (result.status, result.err) == (0, "")
