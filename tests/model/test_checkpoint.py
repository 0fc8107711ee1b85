"""Checkpoints from disk to memory and back, whole and damaged."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chatglm3.errors import CheckpointError
from chatglm3.model.checkpoint import list_tensors, load_model, save_model
from golden import GOLDEN, OFFICIAL, needs_golden
from model.damage import changed_copy
from model.small import CONFIG, logits_of, random_model, save_large_model

INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("max_shard_bytes", [10**9, 20_000])
def test_a_saved_model_is_loaded_bit_for_bit(dtype: torch.dtype, max_shard_bytes: int, tmp_path: Path) -> None:
    model = random_model(dtype=dtype)
    save_model(model, tmp_path, max_shard_bytes=max_shard_bytes)
    again = load_model(tmp_path, device="cpu", dtype=dtype)
    wanted, found = model.state_dict(), again.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert again.config == replace(CONFIG, torch_dtype=str(dtype).removeprefix("torch."))
    assert (len(list(tmp_path.glob("*.safetensors"))) == 1) == (max_shard_bytes == 10**9)


def test_a_loaded_model_is_ready_for_inference(saved: Path) -> None:
    model = load_model(saved, device="cpu", dtype="float32")
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    everything = [*model.parameters(), *model.buffers()]
    assert {tensor.device.type for tensor in everything} == {"cpu"}
    assert {tensor.dtype for tensor in everything} == {torch.float32}
    assert torch.equal(logits_of(model), logits_of(random_model().float()))


@needs_golden
@pytest.mark.parametrize("name", ["tiny-chat", "tiny-bin", "quantized/int8-small", "quantized/int4-small"])
def test_official_checkpoints_are_saved_and_loaded_bit_for_bit(name: str, tmp_path: Path) -> None:
    model = load_model(GOLDEN / name, device="cpu", dtype="float16")
    save_model(model, tmp_path, max_shard_bytes=5 * 10**6)
    again = load_model(tmp_path, device="cpu", dtype="float16")
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in model.state_dict().items())
    config, kept = (json.loads((folder / "config.json").read_text()) for folder in (GOLDEN / name, tmp_path))
    assert config.items() <= kept.items()


@needs_golden
def test_tensors_are_listed_without_their_values() -> None:
    tensors = list_tensors(GOLDEN / "tiny-chat")
    index = json.loads((GOLDEN / "tiny-chat" / INDEX).read_text())
    assert {name: info.file.name for name, info in tensors.items()} == index["weight_map"]
    assert sum(info.nbytes for info in tensors.values()) == index["metadata"]["total_size"]
    embedding = tensors["transformer.embedding.word_embeddings.weight"]
    assert (embedding.shape, embedding.dtype) == ((65024, 64), torch.float16)


@needs_golden
@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_names_of_the_real_model_are_those_of_its_index(kind: str) -> None:
    stem = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
    index = json.loads((OFFICIAL / f"{stem}.index.json").read_text())
    config = json.loads((OFFICIAL / "config.json").read_text())
    with torch.device("meta"):
        model = type(random_model())(type(CONFIG).from_dict(config))
    assert model.state_dict().keys() == index["weight_map"].keys()
    assert sum(t.numel() * 2 for t in model.state_dict().values()) == index["metadata"]["total_size"]


def test_the_bin_layout_loads_the_same_model(bin_folder: Path, saved: Path) -> None:
    found, wanted = (load_model(path, device="cpu", dtype="float32") for path in (bin_folder, saved))
    assert torch.equal(logits_of(found), logits_of(wanted))


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float64])
def test_inv_freq_may_be_absent_or_of_any_float_dtype(dtype: torch.dtype | None, saved: Path, tmp_path: Path) -> None:
    name = "transformer.rotary_pos_emb.inv_freq"

    def change(tensors: dict[str, torch.Tensor]) -> None:
        frequencies = tensors.pop(name)
        if dtype is not None:
            tensors[name] = frequencies.to(dtype)

    model = load_model(changed_copy(saved, tmp_path, change), device="cpu", dtype="float32")
    assert torch.equal(logits_of(model), logits_of(load_model(saved, device="cpu", dtype="float32")))
    assert model.state_dict()[name].device.type == "cpu"


def test_fields_of_the_config_can_be_overridden(saved: Path) -> None:
    model = load_model(saved, device="cpu", dtype="float32", config_overrides={"rope_ratio": 50})
    assert model.config.rope_ratio == 50
    assert not torch.equal(logits_of(model), logits_of(load_model(saved, device="cpu", dtype="float32")))
    with pytest.raises(CheckpointError, match="rope_ration"):
        load_model(saved, device="cpu", config_overrides={"rope_ration": 50})


def test_progress_counts_the_bytes_of_the_files(sharded: Path) -> None:
    calls: list[tuple[int, int]] = []
    load_model(sharded, device="cpu", progress=lambda done, total: calls.append((done, total)))
    total = sum(info.nbytes for info in list_tensors(sharded).values())
    assert calls[-1] == (total, total)
    assert sorted(calls) == calls
    assert len(calls) == len(list_tensors(sharded))


def test_tensors_larger_than_one_piece_are_read_whole(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatglm3.model.shards._CHUNK_BYTES", 1000)
    assert torch.equal(logits_of(load_model(saved, device="cpu", dtype="float16")), logits_of(random_model()))


_PEAK = """
import sys, torch
from chatglm3.model import shards
from chatglm3.model.checkpoint import load_model
shards._CHUNK_BYTES = 8 << 20
def peak():
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
load_model(sys.argv[1], device="cpu", dtype="float32")
before = peak()
model = load_model(sys.argv[2], device="cpu", dtype="float32")
print(peak() - before, sum(p.nbytes for p in model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_loading_needs_little_more_memory_than_the_model(layout: str, saved: Path, tmp_path: Path) -> None:
    save_large_model(tmp_path, layout)
    run = subprocess.run(
        [sys.executable, "-c", _PEAK, str(saved), str(tmp_path)], capture_output=True, text=True, check=True
    )
    grown, resident = map(int, run.stdout.split())
    assert grown < resident * 1.1 + (8 << 20)
