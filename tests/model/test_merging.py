"""Merged checkpoints: the numbers of model and adapter together, official files, and a whole folder or none."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapter_folders import lora_folder, prefix_folder
from chatglm3.errors import AdapterError, CheckpointError, DeviceError
from chatglm3.model.adapters import load_adapter
from chatglm3.model.checkpoint import list_tensors, load_model
from chatglm3.model.merging import merge_checkpoint
from chatglm3.model.quantization import Quantization
from chatglm3.model.quantize_checkpoint import quantize_checkpoint
from golden import GOLDEN, golden_json, golden_tensors, needs_golden
from model.reference import assert_logits, close, inputs_of
from model.small import CONFIG, logits_of


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For all four linear layers of both blocks."""
    return lora_folder(tmp_path_factory.mktemp("adapters") / "lora", CONFIG)


def load(folder: Path, **options: Any) -> Any:
    return load_model(folder, device="cpu", **options)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("layout", ["saved", "sharded", "bin_folder"])
def test_merged_equals_adapter(layout: str, lora: Path, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    source: Path = request.getfixturevalue(layout)
    written = merge_checkpoint(source, lora, tmp_path / "out", dtype="float32")
    merged, beside = load(tmp_path / "out", dtype="float32"), load(source, dtype="float32")
    bare = logits_of(beside)
    load_adapter(beside, lora)
    close(logits_of(merged), logits_of(beside), 2e-4)
    assert not torch.allclose(logits_of(merged), bare, atol=0.5)
    assert (written.layers, written.nbytes) == (8, sum(tensor.nbytes for tensor in weights(tmp_path / "out").values()))


@pytest.mark.parametrize("dtype", ["auto", "float16", "bfloat16", "float32"])
def test_each_sum_is_rounded_once(dtype: str, lora: Path, saved: Path, tmp_path: Path) -> None:
    """The same bits as merging in memory in fp32 and storing that as `dtype`."""
    merge_checkpoint(saved, lora, tmp_path / "out", dtype=dtype)
    model = load(saved, dtype="float32")
    load_adapter(model, lora).merge()
    stored_as = torch.float16 if dtype == "auto" else getattr(torch, dtype)
    found, wanted = weights(tmp_path / "out"), model.state_dict()
    for name, tensor in weights(saved).items():
        assert found[name].dtype == stored_as
        expected = tensor if name.endswith("inv_freq") else wanted[name]
        assert torch.equal(found[name], expected.to(stored_as)), name
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["torch_dtype"] == str(stored_as).removeprefix("torch.")


@pytest.mark.parametrize("bits", [8, 4])
def test_merging_for_a_quantised_model_goes_through_the_full_weights(
    bits: int, lora: Path, saved: Path, tmp_path: Path
) -> None:
    """It is what merging and then quantising gives, and about as near the exact model as the adapter over integers."""
    merge_checkpoint(saved, lora, tmp_path / "merged")
    quantize_checkpoint(tmp_path / "merged", tmp_path / "wanted", Quantization(bits))
    merge_checkpoint(saved, lora, tmp_path / "out", quantization=Quantization(bits))
    assert (tmp_path / "out/model.safetensors").read_bytes() == (tmp_path / "wanted/model.safetensors").read_bytes()
    exact = logits_of(load(tmp_path / "merged", dtype="float32"))
    beside = load(saved, quantize=bits)
    load_adapter(beside, lora)
    errors = [(logits_of(model) - exact).abs().mean() for model in (load(tmp_path / "out"), beside)]
    assert errors[0] < 2 * errors[1] < (0.2 if bits == 8 else 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "out", "wanted"]


@needs_golden
def test_the_golden_adapter_merges_to_the_official_weights(tmp_path: Path) -> None:
    merge_checkpoint(GOLDEN / "tiny-chat", GOLDEN / "lora", tmp_path / "out", dtype="float32")
    tensors = golden_tensors("lora.safetensors")
    name = "transformer.encoder.layers.0.self_attention.query_key_value.weight"
    close(weights(tmp_path / "out")[name], tensors[f"merged.{name}"], 1e-6)
    inputs = inputs_of(golden_json("lora.json")["inputs"]["single"])
    assert_logits(load(tmp_path / "out", dtype="float32")(**inputs).logits, tensors, "single")
    for file in ("tokenizer.model", "tokenizer_config.json"):
        assert (tmp_path / "out" / file).read_bytes() == (GOLDEN / "tiny-chat" / file).read_bytes()
    assert list_tensors(tmp_path / "out").keys() == list_tensors(GOLDEN / "tiny-chat").keys()


def test_shards_are_as_small_as_asked_and_have_an_index(lora: Path, saved: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    merge_checkpoint(saved, lora, tmp_path / "out", max_shard_bytes=40_000, progress=lambda *call: calls.append(call))
    shards = sorted(tmp_path.glob("out/model-*.safetensors"))
    assert len(shards) > 2 and all(shard.stat().st_size < 45_000 for shard in shards)
    assert (tmp_path / "out/model.safetensors.index.json").is_file()
    assert [done for done, _ in calls] == sorted(done for done, _ in calls) and calls[-1][0] == calls[-1][1]
    merge_checkpoint(saved, lora, tmp_path / "one")
    assert [path.name for path in (tmp_path / "one").glob("*.safetensors")] == ["model.safetensors"]
    assert torch.equal(logits_of(load(tmp_path / "out")), logits_of(load(tmp_path / "one")))


def refusal(source: Path, adapter: Path, target: Path, **options: Any) -> str:
    before = sorted(target.parent.rglob("*"))
    with pytest.raises(CheckpointError) as caught:
        merge_checkpoint(source, adapter, target, **options)
    assert sorted(target.parent.rglob("*")) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_quantised_model_is_refused_with_advice(lora: Path, saved: Path, tmp_path: Path) -> None:
    quantize_checkpoint(saved, tmp_path / "int4", Quantization(4))
    said = refusal(tmp_path / "int4", lora, tmp_path / "out")
    assert "quantised to 4 bits" in said and "full-precision" in said and "--quantize 4" in said
    assert "quantised to 4 bits" in refusal(tmp_path / "int4", lora, tmp_path / "out", quantization=Quantization(8))
    official = tmp_path / "official"
    shutil.copytree(saved, official)
    config = json.loads((official / "config.json").read_text())
    (official / "config.json").write_text(json.dumps({**config, "quantization_bit": 8}))
    assert "--quantize 8" in refusal(official, lora, tmp_path / "out")


def test_what_cannot_be_merged_is_said(lora: Path, saved: Path, tmp_path: Path) -> None:
    target = tmp_path / "out"
    assert "prefix" in refusal(saved, prefix_folder(tmp_path / "prefix", CONFIG), target)
    assert "no adapter" in refusal(saved, tmp_path, target)
    assert "no config.json" in refusal(tmp_path / "nothing", lora, target)
    assert "config.json" in refusal(lora, lora, target)
    other = lora_folder(tmp_path / "other", CONFIG)
    tensors = load_file(other / "adapter_model.safetensors")
    name = next(iter(tensors))
    save_file({**tensors, name: torch.ones(2, 5)}, other / "adapter_model.safetensors")
    assert "do not fit" in refusal(saved, other, target)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/kept").touch()
    assert "not an empty folder" in refusal(saved, lora, tmp_path / "full")
    with pytest.raises(AdapterError):
        merge_checkpoint(saved, other, target)
    with pytest.raises(DeviceError, match="int8"):
        merge_checkpoint(saved, lora, target, dtype="int8")


def test_a_sum_that_the_dtype_cannot_hold_is_an_error(saved: Path, tmp_path: Path) -> None:
    large = lora_folder(tmp_path / "large", CONFIG, size=1000)
    assert "not finite as float16" in refusal(saved, large, tmp_path / "out")
    merge_checkpoint(saved, large, tmp_path / "out", dtype="float32")


@pytest.mark.parametrize("quantization", [None, Quantization(4)])
def test_a_full_disk_leaves_nothing(quantization: Quantization | None, lora: Path, saved: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))  # the disk refuses what goes beyond
    try:
        assert "free some space" in refusal(saved, lora, tmp_path / "out", quantization=quantization)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


_HALFWAY = """
import sys
from pathlib import Path
from chatglm3.model.merging import merge_checkpoint
from chatglm3.model.quantization import Quantization
def wait(done, total):
    if done > total / 2:
        print("halfway", flush=True)
        sys.stdin.read()
merge_checkpoint(*map(Path, sys.argv[1:]), quantization=Quantization(4), progress=wait)
"""


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_ended_halfway_leaves_no_model(
    ending: signal.Signals, lora: Path, saved: Path, tmp_path: Path
) -> None:
    arguments = [sys.executable, "-c", _HALFWAY, str(saved), str(lora), str(tmp_path / "out")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(arguments, **pipes) as process:
        assert process.stdout is not None and process.stdout.readline() == b"halfway\n"
        process.send_signal(ending)
        assert process.wait(60) != 0
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.iterdir()) or ending == signal.SIGKILL
    merge_checkpoint(saved, lora, tmp_path / "out", quantization=Quantization(4))  # the next attempt clears it away
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
