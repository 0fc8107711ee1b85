"""Models from memory to disk: config.json and safetensors under the official names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from chatglm3.errors import CheckpointError
from chatglm3.model.config import ModelConfig
from chatglm3.model.tensor_file import TensorFile
from chatglm3.model.transformer import ChatGLMModel

_INDEX = "model.safetensors.index.json"
_TEMPORARY = ".incomplete"


def save_model(model: ChatGLMModel, path: str | Path, *, max_shard_bytes: int = 2 * 10**9) -> None:
    """Write config.json and the weights into the folder `path`, in place of weights that are there.

    One `model.safetensors`, or numbered shards and their index if that would be larger than `max_shard_bytes`. Files
    get temporary names until all are written, so a failure leaves neither half a file nor half a model. Reloading in
    the same dtype gives the same bits. Raises `CheckpointError` while an adapter is loaded, or if the disk refuses.
    """
    with torch.device("meta"):
        official = type(model)(model.config).state_dict().keys()
    tensors = model.state_dict()
    if tensors.keys() != official:
        other = sorted(tensors.keys() ^ official)[0]
        raise CheckpointError(f"cannot save: {other} is not as config.json says; merge() or unload() the adapter first")
    directory = Path(path)
    created = not directory.exists()
    shards = plan_shards({name: tensor.nbytes for name, tensor in tensors.items()}, max_shard_bytes)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory, tensors, shards, _config(model))
    except OSError as error:
        raise CheckpointError(
            f"{directory}: cannot save the model ({error}); free some space or choose another folder"
        ) from None
    finally:
        for file in directory.glob("*" + _TEMPORARY):
            file.unlink()
        if created and directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()


def plan_shards(sizes: Mapping[str, int], max_bytes: int) -> dict[str, list[str]]:
    """File names and the tensors each holds, in order; a tensor larger than `max_bytes` gets a file of its own."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    return {f"model-{i:05d}-of-{len(shards):05d}.safetensors": names for i, names in enumerate(shards, 1)}


def write_index(path: Path, shards: Mapping[str, list[str]], total_size: int) -> None:
    """Write the index of a sharded checkpoint: which file holds which tensor."""
    weight_map = {name: file for file, names in shards.items() for name in names}
    _write_json(path, {"metadata": {"total_size": total_size}, "weight_map": weight_map})


def write_config(path: Path, config: ModelConfig) -> None:
    """Write a config.json."""
    _write_json(path, config.to_dict())


def _write(
    directory: Path, tensors: Mapping[str, Tensor], shards: Mapping[str, list[str]], config: ModelConfig
) -> None:
    for file, names in shards.items():
        with TensorFile(directory / (file + _TEMPORARY), {name: tensors[name] for name in names}) as writer:
            for name in names:
                writer.write(name, tensors[name].detach())
    files = [*shards, "config.json"]
    if len(shards) > 1:
        write_index(directory / (_INDEX + _TEMPORARY), shards, sum(t.nbytes for t in tensors.values()))
        files.append(_INDEX)
    write_config(directory / ("config.json" + _TEMPORARY), config)
    for file in files:
        (directory / (file + _TEMPORARY)).replace(directory / file)
    _remove_old_weights(directory, files)


def _remove_old_weights(directory: Path, new: Sequence[str]) -> None:
    """Remove weights that were there before, indexes first, so that what is left is at no time a mixture."""
    for pattern in ("*.index.json", "model*.safetensors", "pytorch_model*.bin"):
        for file in directory.glob(pattern):
            if file.name not in new:
                file.unlink()


def _config(model: ChatGLMModel) -> ModelConfig:
    dtype = str(model.dtype).removeprefix("torch.")
    extra = {name: value for name, value in model.config.extra.items() if name != "dtype"}
    return replace(model.config, torch_dtype=dtype, extra=extra)


def _write_json(path: Path, data: Mapping[str, object]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
