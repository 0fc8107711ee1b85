"""`chatglm3 merge`, and what its folder answers; the ways it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from adapter_folders import lora_folder, prefix_folder
from chatglm3.model.config import ModelConfig
from cli.runner import HELLO, HELLO_ANSWER, Result, run_process
from cli.terminal import Terminal

Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def lora(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """It makes the taught model say something else."""
    config = ModelConfig.from_pretrained(model_dir)
    return lora_folder(tmp_path_factory.mktemp("adapters") / "lora", config, size=0.5)


def test_the_copy_answers_as_model_and_adapter_do(cli: Cli, model_dir: Path, lora: Path, tmp_path: Path) -> None:
    ask = ("chat", HELLO, "--temperature", "0", "--max-new-tokens", "20")
    beside = cli(*ask, "--adapter", lora)
    assert beside.status == 0 and beside.out.strip() != HELLO_ANSWER == cli(*ask).out.strip()
    result = cli("merge", model_dir, lora, tmp_path / "out", "--json")
    assert (result.status, result.err) == (0, "")
    record = json.loads(result.out)
    assert 0 < record.pop("bytes") < (tmp_path / "out/model.safetensors").stat().st_size
    names = {"model": str(model_dir), "adapter": str(lora), "folder": str(tmp_path / "out")}
    assert record == {**names, "layers": 8, "bits": None}
    assert cli(*ask, "--model", tmp_path / "out").out == beside.out
    assert (tmp_path / "out/tokenizer.model").read_bytes() == (model_dir / "tokenizer.model").read_bytes()


def test_it_can_be_rounded_cut_and_quantised(cli: Cli, model_dir: Path, lora: Path, tmp_path: Path) -> None:
    options = ("--dtype", "bfloat16", "--max-shard-size", "40KB")
    result = cli("merge", model_dir, lora, tmp_path / "half", *options)
    assert result.status == 0 and result.out.startswith(f"{tmp_path / 'half'}: ") and "8 layers" in result.out
    assert len(list((tmp_path / "half").glob("model-*.safetensors"))) > 2
    assert "bfloat16" in cli("info", tmp_path / "half").out
    assert cli("merge", model_dir, lora, tmp_path / "int8", "--quantize", "8").status == 0
    assert json.loads(cli("info", tmp_path / "int8", "--json").out)["quantization"]["bits"] == 8


def test_a_terminal_shows_a_bar(model_dir: Path, lora: Path, tmp_path: Path) -> None:
    terminal = Terminal(["merge", model_dir, lora, tmp_path / "out"], tmp_path)
    try:
        terminal.wait("merging")
        terminal.wait("layers changed")
        assert terminal.ends() == 0
    finally:
        terminal.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--dtype", "int8"), "use auto, float32, bfloat16, float16, not int8"),
        (("--max-shard-size", "big"), "a size is a number with kb, mb or gb, as 2gb, not 'big'"),
        (("--max-shard-size", "0"), "a size is a number"),
        (("--max-shard-size", "3 apples"), "a size is a number"),
        (("--quantize", "5"), "use 8 or 4, not 5"),
        ((), "out"),
    ],
)
def test_usage_errors(
    cli: Cli, model_dir: Path, lora: Path, tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    result = cli("merge", model_dir, lora, *((tmp_path / "out", *options) if options else ()))
    assert result.status == 2 and words in result.err.lower() and result.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_refusals_are_one_line(cli: Cli, model_dir: Path, lora: Path, tmp_path: Path) -> None:
    assert cli("quantize", model_dir, tmp_path / "int4").status == 0
    prefix = prefix_folder(tmp_path / "prefix", ModelConfig.from_pretrained(model_dir))
    mute = shutil.copytree(model_dir, tmp_path / "mute", ignore=shutil.ignore_patterns("tokenizer*"))
    for source, adapter, words in (
        (tmp_path / "int4", lora, "--quantize 4"),
        (model_dir, prefix, "cannot be merged"),
        (model_dir, tmp_path / "nothing", "no adapter"),
        (lora, lora, "no config.json"),
        (mute, lora, "tokenizer.model"),
    ):
        result = cli("merge", source, adapter, tmp_path / "out")
        assert result.status == 1 and words in result.err and result.err.count("\n") == 1
    assert "not an empty folder" in cli("merge", model_dir, lora, prefix).err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["int4", "mute", "prefix"]


def test_as_a_process(model_dir: Path, lora: Path, tmp_path: Path) -> None:
    shutil.copytree(model_dir, tmp_path / "model")
    result = run_process("merge", tmp_path / "model", lora, tmp_path / "out", "--quantize", "4")
    assert (result.status, result.err) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]
