"""Checkpoints from disk to memory and back, whole and damaged."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from chatglm3.errors import CheckpointError, DeviceError
from chatglm3.model.checkpoint import list_tensors, load_model, save_model
from chatglm3.model.saving import plan_shards
from chatglm3.model.transformer import ChatGLMModel
from golden import GOLDEN, OFFICIAL, needs_golden
from model.small import CONFIG, logits_of, random_model

INDEX = "model.safetensors.index.json"


def refusal(folder: Path, **options: Any) -> str:
    """The one line that says why the folder is not loaded."""
    with pytest.raises(CheckpointError) as caught:
        load_model(folder, device="cpu", **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def change_json(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def change_tensors(file: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file)


def damaged_copy(saved: Path, tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    folder = tmp_path / "damaged"
    shutil.copytree(saved, folder)
    change_tensors(folder / "model.safetensors", change)
    return folder


# --- whole checkpoints ------------------------------------------------------------------------------------------------


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

    model = load_model(damaged_copy(saved, tmp_path, change), device="cpu", dtype="float32")
    assert torch.equal(logits_of(model), logits_of(load_model(saved, device="cpu", dtype="float32")))
    assert model.state_dict()[name].device.type == "cpu"


def test_fields_of_the_config_can_be_overridden(saved: Path) -> None:
    model = load_model(saved, device="cpu", dtype="float32", config_overrides={"rope_ratio": 50})
    assert model.config.rope_ratio == 50
    assert not torch.equal(logits_of(model), logits_of(load_model(saved, device="cpu", dtype="float32")))
    assert "rope_ration" in refusal(saved, config_overrides={"rope_ration": 50})


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
    with torch.device("meta"):
        model = ChatGLMModel(replace(CONFIG, hidden_size=2048, padded_vocab_size=16_384)).half()
    model.to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.fill_(0.01)
    save_model(model, tmp_path)
    if layout == "bin":
        torch.save(dict(model.state_dict()), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    del model
    run = subprocess.run(
        [sys.executable, "-c", _PEAK, str(saved), str(tmp_path)], capture_output=True, text=True, check=True
    )
    grown, resident = map(int, run.stdout.split())
    assert grown < resident * 1.1 + (8 << 20)


# --- damaged checkpoints ----------------------------------------------------------------------------------------------


def test_no_folder_no_config_no_weights_no_index(sharded: Path, tmp_path: Path) -> None:
    assert "config.json" in refusal(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "config.json" in refusal(tmp_path / "empty")
    shutil.copy(sharded / "config.json", tmp_path / "empty")
    assert "no weights" in refusal(tmp_path / "empty")
    (sharded / INDEX).unlink()
    assert INDEX in refusal(sharded)
    with pytest.raises(CheckpointError, match="no such folder"):
        list_tensors(tmp_path / "nowhere")


def test_a_missing_or_truncated_shard_is_named(sharded: Path) -> None:
    shards = sorted(sharded.glob("*.safetensors"))
    whole = shards[1].read_bytes()
    for size in (0, 5, 200, len(whole) - 1):
        shards[1].write_bytes(whole[:size])
        assert shards[1].name in refusal(sharded)
    shards[1].unlink()
    shards[2].unlink()
    message = refusal(sharded)
    assert shards[1].name in message
    assert shards[2].name in message


def test_a_git_lfs_pointer_is_recognised(sharded: Path) -> None:
    shard = min(sharded.glob("*.safetensors"))
    shard.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n")
    assert "git lfs pull" in refusal(sharded)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_a_broken_index_is_named(text: str, sharded: Path) -> None:
    (sharded / INDEX).write_text(text)
    assert INDEX in refusal(sharded)


def test_an_index_that_contradicts_its_shards_is_refused(sharded: Path) -> None:
    names = list(list_tensors(sharded))
    change_json(
        sharded / INDEX, lambda data: data["weight_map"].update({names[0]: list_tensors(sharded)[names[-1]].file.name})
    )
    assert names[0] in refusal(sharded)


def test_an_index_cannot_reach_outside_its_folder(sharded: Path, tmp_path: Path) -> None:
    shard = min(sharded.glob("*.safetensors"))
    shutil.move(shard, tmp_path / shard.name)

    def change(data: dict[str, Any]) -> None:
        data["weight_map"] = {n: f.replace(shard.name, f"../{shard.name}") for n, f in data["weight_map"].items()}

    change_json(sharded / INDEX, change)
    assert "missing shard" in refusal(sharded)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_a_value_that_is_not_finite_is_refused_by_name(
    value: float, layout: str, saved: Path, bin_folder: Path, tmp_path: Path
) -> None:
    name = "transformer.encoder.layers.1.mlp.dense_h_to_4h.weight"
    if layout == "safetensors":
        folder = damaged_copy(saved, tmp_path, lambda tensors: tensors[name][-1, 3:4].fill_(value))
    else:
        folder = bin_folder
        tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
        tensors[name][-1, 3] = value
        torch.save(tensors, folder / "pytorch_model.bin")
    assert name in refusal(folder)


def test_a_value_too_large_for_the_dtype_is_refused(saved: Path, tmp_path: Path) -> None:
    name = "transformer.encoder.final_layernorm.weight"
    folder = damaged_copy(saved, tmp_path, lambda tensors: tensors.update({name: torch.full((32,), 1e6)}))
    assert "float16" in refusal(folder, dtype="float16")
    assert load_model(folder, device="cpu", dtype="float32").state_dict()[name][0] == 1e6


def test_every_missing_unexpected_misshapen_and_mistyped_tensor_is_named(saved: Path, tmp_path: Path) -> None:
    layer = "transformer.encoder.layers.0"

    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors["transformer.output_layer.weight"]
        tensors["lm_head.weight"] = torch.ones(2)
        tensors[f"{layer}.mlp.dense_h_to_4h.weight"] = torch.ones(3, 4)
        tensors[f"{layer}.input_layernorm.weight"] = torch.ones(32, dtype=torch.int8)

    message = refusal(damaged_copy(saved, tmp_path, change))
    assert "1 missing tensor(s): transformer.output_layer.weight" in message
    assert "1 unexpected tensor(s): lm_head.weight" in message
    assert f"1 misshapen tensor(s): {layer}.mlp.dense_h_to_4h.weight [3, 4] where [96, 32] belongs" in message
    assert f"1 wrongly typed tensor(s): {layer}.input_layernorm.weight int8" in message


def test_long_lists_of_names_are_shortened(saved: Path) -> None:
    message = refusal(saved, config_overrides={"num_layers": 3})
    assert "7 missing tensor(s)" in message
    assert "and 2 more" in message


def test_a_quantised_config_on_ordinary_weights_is_refused(saved: Path) -> None:
    assert "weight_scale" in refusal(saved, config_overrides={"quantization_bit": 8})


def test_a_config_without_a_field_is_refused_by_name(sharded: Path) -> None:
    change_json(sharded / "config.json", lambda data: data.pop("kv_channels"))
    assert "kv_channels" in refusal(sharded)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "llama"}, "not a ChatGLM3"),
        ({"padded_vocab_size": 151552}, "GLM-4"),
        ({"model_type": "glm4"}, "GLM-4"),
        ({"position_encoding_2d": True}, "first ChatGLM"),
    ],
)
def test_other_models_are_recognised(change: dict[str, Any], said: str, sharded: Path) -> None:
    change_json(sharded / "config.json", lambda data: data.update(change))
    assert said in refusal(sharded)


class _Payload:
    """What a malicious file holds: unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["payload", "module", "raw pickle", "list", "cut", "empty"])
def test_a_bin_with_anything_but_tensors_is_refused_and_never_run(kind: str, bin_folder: Path, tmp_path: Path) -> None:
    file, trace = bin_folder / "pytorch_model.bin", tmp_path / "trace"
    if kind == "payload":
        torch.save({"weight": _Payload(trace)}, file)
    elif kind == "module":
        torch.save({"weight": nn.Linear(2, 2)}, file)
    elif kind == "raw pickle":
        file.write_bytes(pickle.dumps({"weight": _Payload(trace)}))
    elif kind == "list":
        torch.save([torch.ones(2)], file)
    else:
        file.write_bytes(file.read_bytes()[: 0 if kind == "empty" else 9000])
    assert "pytorch_model.bin" in refusal(bin_folder)
    assert not trace.exists()


def test_too_little_memory_is_said_before_a_weight_is_read(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatglm3.model.placement.free_memory", lambda device: 100_000)
    monkeypatch.setattr("chatglm3.model.checkpoint.read_tensor", lambda *args: pytest.fail("a weight was read"))
    with pytest.raises(DeviceError, match=r"needs .* GiB as float32, .* GiB free"):
        load_model(saved, device="cpu", dtype="float32")


# --- saving -----------------------------------------------------------------------------------------------------------


def test_saving_replaces_the_weights_that_were_there(bin_folder: Path) -> None:
    (bin_folder / "tokenizer.model").write_bytes(b"kept")
    save_model(random_model(), bin_folder, max_shard_bytes=40_000)
    assert not (bin_folder / "pytorch_model.bin").exists()
    save_model(random_model(), bin_folder)
    assert sorted(file.name for file in bin_folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.model"]
    assert torch.equal(logits_of(load_model(bin_folder, device="cpu", dtype="float16")), logits_of(random_model()))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("file", [INDEX, "config.json"])
def test_a_full_disk_leaves_what_was_there(file: str, sharded: Path) -> None:
    before = {path.name: path.read_bytes() for path in sharded.iterdir()}
    (sharded / f"{file}.incomplete").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match="cannot save") as caught:
        save_model(random_model().float(), sharded, max_shard_bytes=80_000)
    assert "\n" not in str(caught.value)
    assert {path.name: path.read_bytes() for path in sharded.iterdir()} == before


@pytest.mark.parametrize("exists", [True, False])
def test_a_shard_that_cannot_be_written_leaves_what_was_there(exists: bool, sharded: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    largest = max(file.stat().st_size for file in sharded.glob("*.safetensors"))
    folder = tmp_path / "target"
    if exists:
        save_model(random_model(), folder)
    before = {path.name: path.read_bytes() for path in folder.glob("*")}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, limit[1]))  # the disk refuses what goes beyond
    try:
        with pytest.raises(CheckpointError, match="cannot save"):
            save_model(random_model(), folder, max_shard_bytes=40_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert folder.exists() == exists
    assert {path.name: path.read_bytes() for path in folder.glob("*")} == before


def test_saving_where_nothing_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot save"):
        save_model(random_model(), tmp_path / "file" / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_shards_keep_the_order_and_the_limit() -> None:
    sizes = {"a": 4, "b": 4, "c": 30, "d": 3, "e": 6}
    assert list(plan_shards(sizes, 10).values()) == [["a", "b"], ["c"], ["d", "e"]]
    assert list(plan_shards(sizes, 10)) == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert plan_shards(sizes, 100) == {"model.safetensors": list("abcde")}
