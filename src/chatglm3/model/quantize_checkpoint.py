"""From a checkpoint directory to a quantised one, a few rows at a time: neither model is ever in memory."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor

from chatglm3.errors import CheckpointError
from chatglm3.model.checkpoint import Progress, check_tensors, quantized_config
from chatglm3.model.config import ModelConfig
from chatglm3.model.grouping import group_and_measure
from chatglm3.model.linear import GROUPED_TENSORS, Grouped
from chatglm3.model.new_folder import copy_tokenizer, new_folder, require_new
from chatglm3.model.quantization import Quantization
from chatglm3.model.saving import write_config
from chatglm3.model.shards import TensorInfo, read_rows
from chatglm3.model.tensor_file import TensorFile
from chatglm3.model.transformer import ChatGLMModel

_WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class QuantizedCheckpoint:
    """What was written: bytes of the weights, and by kind of layer the relative RMS error of its weights."""

    nbytes: int
    relative_error: dict[str, float]


def quantize_checkpoint(
    source: Path, target: Path, quantization: Quantization, progress: Progress | None = None
) -> QuantizedCheckpoint:
    """Write the model in the folder `source` to the folder `target`, its weights quantised in groups.

    `target` appears when it is complete; until then the files are in a hidden folder beside it, which is removed after
    a failure and overwritten by the next attempt if the process was killed. `progress` is called with the bytes read
    and the bytes to read. Raises `CheckpointError` if `source` is not a complete model that can be quantised, if
    `target` holds something already, or if the disk refuses.
    """
    require_new(target)
    config = _read_config(source)
    wanted = quantized_config(config, quantization)
    stored = check_tensors(ChatGLMModel, config, source)
    needed = sum(tensor.nbytes for tensor in _planned(_empty_model(wanted), stored).values())
    with new_folder(target, needed) as folder:
        errors = _write_weights(folder / _WEIGHTS, wanted, stored, progress)
        write_config(folder / "config.json", wanted)
        copy_tokenizer(source, folder)
        nbytes = (folder / _WEIGHTS).stat().st_size
    return QuantizedCheckpoint(nbytes, errors)


def _read_config(source: Path) -> ModelConfig:
    if (source / "adapter_config.json").is_file() and not (source / "config.json").is_file():
        raise CheckpointError(f"{source}: an adapter, not a model; quantise the model it belongs to")
    return ModelConfig.from_pretrained(source)


def _write_weights(
    file: Path, wanted: ModelConfig, stored: dict[str, TensorInfo], progress: Progress | None
) -> dict[str, float]:
    """Write all tensors; returns the relative errors."""
    model = _empty_model(wanted)
    errors: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
    done, total = 0, sum(info.nbytes for info in stored.values())
    with TensorFile(file, _planned(model, stored)) as writer:
        for name, info in stored.items():
            owner, _, kind = name.rpartition(".")
            layer = model.get_submodule(owner)
            for rows, values in read_rows(name, info):
                done += values.nbytes
                if isinstance(layer, Grouped) and kind == "weight":
                    part = group_and_measure(values, layer.bits, layer.packed.group_size, f"{info.file}: {name}")
                    for suffix, (first, tensor) in zip(GROUPED_TENSORS, part.weight.placed(rows.start), strict=True):
                        writer.write(f"{owner}.{suffix}", tensor, first)
                    errors[owner.rpartition(".")[2]].append((part.squared_error, part.squared_sum))
                else:
                    writer.write(name, values, rows.start)
                del values  # lets go of the file's pages
                if progress is not None:
                    progress(done, total)
    return {kind: _relative(parts) for kind, parts in errors.items()}


def _empty_model(config: ModelConfig) -> ChatGLMModel:
    with torch.device("meta"):
        return ChatGLMModel(config)


def _planned(model: ChatGLMModel, stored: dict[str, TensorInfo]) -> dict[str, Tensor]:
    """The tensors to write, without values; what is not quantised keeps the dtype it is stored in."""
    planned = {}
    for name, tensor in model.state_dict().items():
        layer = model.get_submodule(name.rpartition(".")[0])
        if isinstance(layer, Grouped) and not name.endswith(".bias"):
            planned[name] = tensor
        elif name in stored:
            planned[name] = tensor.to(stored[name].dtype)
    return planned


def _relative(parts: list[tuple[float, float]]) -> float:
    error, total = (sum(column) for column in zip(*parts, strict=True))
    return sqrt(error / total) if total else 0.0
