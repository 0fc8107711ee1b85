"""Checkpoints that are not whole, or not ChatGLM3: each gets one line that names what is wrong."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chatglm3.errors import CheckpointError, DeviceError
from chatglm3.model.checkpoint import list_tensors, load_model
from model.damage import change_json, changed_copy

INDEX = "model.safetensors.index.json"


def refusal(folder: Path, **options: Any) -> str:
    """The one line that says why the folder is not loaded."""
    with pytest.raises(CheckpointError) as caught:
        load_model(folder, device="cpu", **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


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
        folder = changed_copy(saved, tmp_path, lambda tensors: tensors[name][-1, 3:4].fill_(value))
    else:
        folder = bin_folder
        tensors = torch.load(folder / "pytorch_model.bin", weights_only=True)
        tensors[name][-1, 3] = value
        torch.save(tensors, folder / "pytorch_model.bin")
    assert name in refusal(folder)


def test_a_value_too_large_for_the_dtype_is_refused(saved: Path, tmp_path: Path) -> None:
    name = "transformer.encoder.final_layernorm.weight"
    folder = changed_copy(saved, tmp_path, lambda tensors: tensors.update({name: torch.full((32,), 1e6)}))
    assert "float16" in refusal(folder, dtype="float16")
    assert load_model(folder, device="cpu", dtype="float32").state_dict()[name][0] == 1e6


def test_every_missing_unexpected_misshapen_and_mistyped_tensor_is_named(saved: Path, tmp_path: Path) -> None:
    layer = "transformer.encoder.layers.0"

    def change(tensors: dict[str, Tensor]) -> None:
        del tensors["transformer.output_layer.weight"]
        tensors["lm_head.weight"] = torch.ones(2)
        tensors[f"{layer}.mlp.dense_h_to_4h.weight"] = torch.ones(3, 4)
        tensors[f"{layer}.input_layernorm.weight"] = torch.ones(32, dtype=torch.int8)

    message = refusal(changed_copy(saved, tmp_path, change))
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
