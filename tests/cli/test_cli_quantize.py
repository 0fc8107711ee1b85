"""`chatglm3 quantize`, in a process, in a terminal, and the ways it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from adapter_folders import lora_folder
from chatglm3.model.config import ModelConfig
from cli.runner import HELLO, HELLO_ANSWER, Result, run_process
from cli.terminal import Terminal

Cli = Callable[..., Result]


@pytest.mark.parametrize("bits", [8, 4])
def test_the_copy_answers_as_the_model(cli: Cli, model_dir: Path, tmp_path: Path, bits: int) -> None:
    result = cli("quantize", model_dir, tmp_path / "out", "--bits", str(bits), "--json")
    record = json.loads(result.out)
    assert (result.status, result.err) == (0, "")
    assert (record["bits"], record["group_size"], record["folder"]) == (bits, 32, str(tmp_path / "out"))
    assert record["bytes"] == (tmp_path / "out/model.safetensors").stat().st_size
    assert 0 < record["relative_error"]["dense"] < (0.1 if bits == 4 else 0.01)
    if bits == 8:
        answer = cli("chat", HELLO, "--model", tmp_path / "out", "--temperature", "0")
        assert answer.out.strip() == HELLO_ANSWER
    info = json.loads(cli("info", tmp_path / "out", "--json").out)
    assert info["quantization"]["bits"] == bits and info["files"]["complete"]
    assert list(info["weights_bytes"]) == [f"int{bits}"]
    assert f"quantised to int{bits} in groups of 32" in cli("info", tmp_path / "out").out


def test_people_are_told_folder_size_and_errors(model_dir: Path, tmp_path: Path) -> None:
    result = run_process("quantize", model_dir, tmp_path / "out", "--group-size", "64")
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith(f"{tmp_path / 'out'}: 0.") and "MiB" in result.out.splitlines()[0]
    assert len(result.out.splitlines()) == 7 and "dense_4h_to_h" in result.out


def test_a_terminal_shows_a_bar(model_dir: Path, tmp_path: Path) -> None:
    terminal = Terminal(["quantize", model_dir, tmp_path / "out"], tmp_path)
    try:
        terminal.wait("quantising")
        terminal.wait("relative error")
        assert terminal.ends() == 0
    finally:
        terminal.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [(("--bits", "5"), "use 8 or 4, not 5"), (("--group-size", "48"), "use 32, 64 or 128, not 48"), ((), "out")],
)
def test_usage_errors(cli: Cli, model_dir: Path, tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    result = cli("quantize", model_dir, *((tmp_path / "out", *options) if options else ()))
    assert result.status == 2 and words in result.err.lower() and result.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_refusals_are_one_line(cli: Cli, model_dir: Path, tmp_path: Path) -> None:
    assert cli("quantize", model_dir, tmp_path / "out").status == 0
    for source, words in ((model_dir, "not an empty folder"), (tmp_path / "nothing", "no such folder")):
        result = cli("quantize", source, tmp_path / "out")
        assert result.status == 1 and words in result.err and result.err.count("\n") == 1
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(model_dir / name, bare)
    for tokenizer, words in (("", "tokenizer.model cannot be read"), ("nonsense", "tokenizer.model is not usable")):
        if tokenizer:
            (bare / "tokenizer.model").write_text(tokenizer)
        result = cli("quantize", bare, tmp_path / "mute")
        assert result.status == 1 and words in result.err and result.err.count("\n") == 1
    shutil.rmtree(bare)
    adapter = lora_folder(tmp_path / "adapter", ModelConfig.from_pretrained(model_dir))
    assert "an adapter, not a model" in cli("quantize", adapter, tmp_path / "mute").err
    shutil.rmtree(adapter)
    assert "quantised to 4 bits already" in cli("quantize", tmp_path / "out", tmp_path / "again").err
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
