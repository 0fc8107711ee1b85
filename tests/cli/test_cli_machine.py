"""`info`, `download` and `doctor`."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from chatglm3.cli.memory import cache_by_context, format_bytes, weights_by_form
from chatglm3.model.config import CHATGLM3_6B, ModelConfig
from cli.runner import Result, run_process
from golden import OFFICIAL
from model.hub_server import FILES, REPOSITORY, Hub, serve
from tiny_model import tiny_config

Cli = Callable[..., Result]


def test_memory_of_the_released_model() -> None:
    forms = {form: format_bytes(size) for form, size in weights_by_form(CHATGLM3_6B).items()}
    assert CHATGLM3_6B.parameter_count == 6_243_584_000
    assert forms == {
        "float32": "23.26 GiB",
        "bfloat16": "11.63 GiB",
        "float16": "11.63 GiB",
        "int8": "6.00 GiB",
        "int4": "3.34 GiB",
    }
    assert cache_by_context(CHATGLM3_6B) == {2048: 56 * 2**20, 8192: 224 * 2**20}


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="the official files (../shared/official) are absent")
def test_info_of_the_official_config_without_weights(cli: Cli) -> None:
    record = json.loads(cli("info", OFFICIAL, "--json").out)
    assert ModelConfig.from_pretrained(OFFICIAL) == CHATGLM3_6B
    assert record["parameters"] == 6_243_584_000
    assert record["kv_cache_bytes_per_token"] == 28_672
    assert (record["kind"], record["tools"], record["context"], record["layers"]) == ("chat", True, 8192, 28)
    assert record["weights_bytes"] == weights_by_form(CHATGLM3_6B)
    assert not record["files"]["complete"] and "model-00001-of-00007" in record["files"]["problem"]


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="the official files (../shared/official) are absent")
def test_info_of_a_quantised_model_with_a_long_context(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "chatglm3-6b-32k"
    folder.mkdir()
    shutil.copy(OFFICIAL / "config.32k-int4.json", folder / "config.json")
    record = json.loads(cli("info", folder, "--json").out)
    assert (record["context"], record["rope_ratio"], record["tools"]) == (32768, 50, False)
    assert list(record["weights_bytes"]) == ["int4"]
    assert record["kv_cache_bytes"]["32768"] == 896 * 2**20


def test_info_of_a_complete_model(cli: Cli, model_dir: Path) -> None:
    record = json.loads(cli("info", model_dir, "--json").out)
    config = tiny_config(ModelConfig.from_pretrained(model_dir).padded_vocab_size)
    assert record["parameters"] == config.parameter_count
    assert record["files"]["complete"] and record["files"]["dtypes"] == ["float32"]
    assert record["files"]["bytes"] >= record["weights_bytes"]["float32"]
    page = cli("info", model_dir).out
    assert re.search("files +complete\n", page) and "200,000 tokens" in page


@pytest.mark.parametrize("missing", ["tokenizer.model", "model.safetensors"])
def test_info_says_what_is_missing(cli: Cli, model_dir: Path, tmp_path: Path, missing: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(model_dir, folder)
    (folder / missing).unlink()
    result = cli("info", folder)
    assert result.status == 0 and "complete" not in result.out and "download" in result.out


@pytest.mark.parametrize(
    ("config", "words"), [("{}", "not a ChatGLM3 model"), ('{"model_type": "glm4"}', "GLM-4"), ("[", "JSON")]
)
def test_info_of_what_is_no_model(cli: Cli, tmp_path: Path, config: str, words: str) -> None:
    (tmp_path / "config.json").write_text(config)
    result = cli("info", tmp_path)
    assert (result.status, result.out, result.err.count("\n")) == (1, "", 1) and words in result.err


@pytest.mark.parametrize("command", ["info", "download"])
@pytest.mark.parametrize("name", ["nowhere", "modelscope:nowhere", "a/b/c"])
def test_names_of_no_model(cli: Cli, command: str, name: str) -> None:
    result = cli(command, name)
    assert (result.status, result.out, result.err.count("\n")) == (1, "", 1) and name in result.err


def test_info_of_a_model_on_a_hub_fetches_no_weights(model_dir: Path, tmp_path: Path) -> None:
    config = (model_dir / "config.json").read_bytes()
    with serve(Hub({**FILES, "config.json": config})) as hub:
        result = run_process("info", REPOSITORY, "--json", **_client(tmp_path, hub.url))
        fetched = {name for method, name, _ in hub.requests if method == "GET"}
    record = json.loads(result.out)
    assert result.status == 0 and record["layers"] == 2 and not record["files"]["complete"]
    assert "config.json" in fetched and all(name.endswith(".json") for name in fetched)


def test_info_of_a_model_on_a_hub_that_cannot_be_reached(tmp_path: Path) -> None:
    result = run_process("info", REPOSITORY, **_client(tmp_path, "http://127.0.0.1:9"))
    assert (result.status, result.out, result.err.count("\n")) == (1, "", 1) and REPOSITORY in result.err


def _client(home: Path, endpoint: str) -> dict[str, str]:
    return {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1,localhost"}


def test_download_prints_the_folder(cli: Cli, model_dir: Path) -> None:
    assert cli("download", model_dir) == Result(0, f"{model_dir}\n", "")
    record = json.loads(cli("download", model_dir, "--json").out)
    assert record == {"model": str(model_dir), "folder": str(model_dir)}


def test_doctor(cli: Cli) -> None:
    result = cli("doctor", "--json")
    record = json.loads(result.out)
    assert (result.status, result.err) == (0, "")
    assert record["self_test"]["passed"]
    assert record["devices"][0]["device"] == "cpu" and record["devices"][0]["free_bytes"] > 0
    free = sum(d["free_bytes"] for d in record["devices"] if d["device"].startswith(record["chosen_device"]))
    assert {name: fit["fits"] for name, fit in record["fits_6b"].items()} == {
        name: size <= free for name, size in weights_by_form(CHATGLM3_6B).items()
    }
    page = cli("doctor").out
    assert all(word in page for word in ("torch", "cpu", "GiB", "int4", "cache", "self-test   passed"))


def test_doctor_lists_the_models_in_the_cache(
    cli: Cli, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("models--zai-org--chatglm3-6b", "models--other--model"):
        snapshot = tmp_path / name / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        if "chatglm" in name:
            shutil.copy(model_dir / "config.json", snapshot)
        else:
            (snapshot / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert list(json.loads(cli("doctor", "--json").out)["cache"]["models"]) == ["zai-org/chatglm3-6b"]
