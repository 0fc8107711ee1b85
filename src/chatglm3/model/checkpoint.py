"""Models from disk to memory and back.

Loading is strict: every missing, unexpected or misshapen tensor is named before a value is read, and a value that is
not finite is refused. The model is built without memory and each tensor is converted into its final place a few rows
at a time, so loading needs little more than the loaded model. Values are copied and not left mapped: a file that is cut
short under a map kills the process, and the check for NaN reads every byte anyway.

A model that is quantised in groups is the exception: on a CPU its integers and group scales stay in the mapped file, so
that it is there in seconds. All its tensors are compared with the sums that were written with them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from chatglm3.errors import CheckpointError
from chatglm3.model.classifier import SequenceClassifier
from chatglm3.model.config import ModelConfig
from chatglm3.model.grouping import group_rows
from chatglm3.model.linear import GROUPED_TENSORS, Grouped, QuantizedLinear
from chatglm3.model.placement import choose_device, choose_dtype, place
from chatglm3.model.quantization import Quantization
from chatglm3.model.saving import save_model
from chatglm3.model.shards import TensorInfo, list_tensors, map_tensors, read_rows
from chatglm3.model.transformer import ChatGLMModel, RotaryEmbedding

__all__ = ["list_tensors", "load_classifier", "load_model", "read_tensor", "save_model"]

Progress = Callable[[int, int], None]
"""Called with the bytes read so far and the bytes to read."""

_INV_FREQ = "transformer.rotary_pos_emb.inv_freq"
_SHOWN = 5

_Model = TypeVar("_Model", bound=ChatGLMModel)


def load_model(
    path: str | Path,
    *,
    device: str = "auto",
    dtype: str | torch.dtype = "auto",
    quantize: int | None = None,
    config_overrides: Mapping[str, object] | None = None,
    progress: Progress | None = None,
) -> ChatGLMModel:
    """Load a checkpoint directory for inference: evaluation mode, no gradients.

    `device` and `dtype` are those of `placement.choose_device` and `choose_dtype`; `quantize` 8 or 4 quantises each
    weight in groups as it is read; `config_overrides` replaces fields of config.json. Quantised checkpoints keep their
    integers, and their scales as stored. Raises `CheckpointError` for files that are not a complete ChatGLM3 model or
    that cannot be quantised, and `DeviceError`, before a weight is read, for too little memory.
    """
    config = _read_config(Path(path), config_overrides or {})
    wanted = config if quantize is None else quantized_config(config, Quantization(quantize))
    return _load(ChatGLMModel, config, wanted, Path(path), device, dtype, progress)


def load_classifier(
    path: str | Path, *, device: str = "auto", dtype: str | torch.dtype = "auto", progress: Progress | None = None
) -> SequenceClassifier:
    """Load a checkpoint with a sequence-classification head, as `load_model` does. config.json says `num_labels`."""
    config = _read_config(Path(path), {})
    return _load(SequenceClassifier, config, config, Path(path), device, dtype, progress)


def quantized_config(config: ModelConfig, quantization: Quantization) -> ModelConfig:
    """`config` with the weights quantised in groups; `CheckpointError` if they are quantised already."""
    if config.quantization_bit or config.quantization:
        bits = config.quantization.bits if config.quantization else config.quantization_bit
        raise CheckpointError(f"the model is quantised to {bits} bits already; take the original weights instead")
    return replace(config, quantization=quantization)


def check_tensors(build: Callable[[ModelConfig], nn.Module], config: ModelConfig, path: Path) -> dict[str, TensorInfo]:
    """The tensors of a checkpoint directory; `CheckpointError` if they are not those of the model of `config`."""
    with torch.device("meta"):
        expected = build(config).state_dict()
    stored = list_tensors(path)
    _check_names(expected, stored, path)
    return stored


def read_tensor(name: str, info: TensorInfo, target: Tensor) -> None:
    """Read a tensor into `target`, which has its shape, in the dtype and on the device of `target`.

    Raises `CheckpointError` if a value is not finite, in the file or in the dtype of `target`.
    """
    for rows, values in read_rows(name, info):
        part = target[rows]
        part.copy_(values)
        del values  # lets go of the file's pages
        if part.is_floating_point() and not all(torch.isfinite(bound) for bound in torch.aminmax(part)):
            dtype = str(target.dtype).removeprefix("torch.")
            raise CheckpointError(
                f"{info.file}: {name} holds NaN or infinite values (as {dtype}); download the file again"
            )


def _read_config(path: Path, overrides: Mapping[str, object]) -> ModelConfig:
    config = ModelConfig.from_pretrained(path)
    unknown = sorted(overrides.keys() - ModelConfig.__dataclass_fields__.keys())
    if unknown:
        raise CheckpointError(f"config override(s) {', '.join(unknown)} are not fields of config.json")
    return ModelConfig.from_dict({**config.to_dict(), **overrides}, str(path / "config.json"))


def _load(
    build: Callable[[ModelConfig], _Model],
    config: ModelConfig,
    wanted: ModelConfig,
    path: Path,
    device: str,
    dtype: str | torch.dtype,
    progress: Progress | None,
) -> _Model:
    """Build the model of `wanted` from the files of `config`, which differ if weights are quantised while loading."""
    stored = check_tensors(build, config, path)
    with torch.device("meta"):
        model = build(wanted)
    dtype = choose_dtype(wanted, choose_device(device), dtype)
    units = place(wanted, dtype, device)
    state: dict[str, Tensor] = {}
    mapped: dict[Path, list[str]] = {}
    done, total = 0, sum(info.nbytes for info in stored.values())
    for name, info in stored.items():
        owner, _, kind = name.rpartition(".")
        layer, unit = model.get_submodule(owner), units[_unit(name, len(units))]
        if wanted != config and isinstance(layer, Grouped) and kind == "weight":
            state.update(_read_grouped(name, info, layer, unit))
        elif _stays_mapped(layer, kind, info, unit):
            mapped.setdefault(info.file, []).append(name)
        else:
            state[name] = torch.empty(info.shape, dtype=_dtype(layer, kind, info, dtype), device=unit)
            read_tensor(name, info, state[name])
        done += info.nbytes
        if progress is not None:
            progress(done, total)
    for file, names in mapped.items():
        state.update(map_tensors(file, names))
    if _INV_FREQ not in state:
        frequencies = RotaryEmbedding(config).get_buffer("inv_freq")
        state[_INV_FREQ] = frequencies.to(units[0], dtype)
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def _read_grouped(name: str, info: TensorInfo, layer: Grouped, device: torch.device) -> dict[str, Tensor]:
    """The three tensors of a layer whose floating-point weight `name` is quantised as it is read."""
    whole = [torch.empty_like(layer.get_buffer(kind), device=device) for kind in GROUPED_TENSORS]
    for rows, values in read_rows(name, info):
        part = group_rows(values.to(device), layer.bits, layer.packed.group_size, f"{info.file}: {name}")
        del values  # lets go of the file's pages
        for target, (first, tensor) in zip(whole, part.placed(rows.start), strict=True):
            target[first : first + len(tensor)] = tensor
    return {name.removesuffix("weight") + kind: tensor for kind, tensor in zip(GROUPED_TENSORS, whole, strict=True)}


def _stays_mapped(layer: nn.Module, kind: str, info: TensorInfo, device: torch.device) -> bool:
    grouped = isinstance(layer, Grouped) and kind in ("weight", "weight_scale")
    return grouped and device.type == "cpu" and info.file.suffix == ".safetensors"


def _dtype(layer: nn.Module, kind: str, info: TensorInfo, dtype: torch.dtype) -> torch.dtype:
    """What a tensor is converted to: integers and scales of quantised layers are not."""
    if kind == "bias" or not isinstance(layer, QuantizedLinear | Grouped):
        return dtype
    return info.dtype if isinstance(layer, QuantizedLinear) else layer.get_buffer(kind).dtype


def _unit(name: str, units: int) -> int:
    """The unit of `placement.place` that a tensor belongs to."""
    parts = name.split(".")
    if parts[1:3] == ["encoder", "layers"]:
        return int(parts[3]) + 1
    return units - 1 if parts[1] in ("encoder", "output_layer") or parts[0] == "classifier_head" else 0


def _check_names(expected: Mapping[str, Tensor], stored: Mapping[str, TensorInfo], path: Path) -> None:
    missing = [name for name in expected if name not in stored and name != _INV_FREQ]
    unexpected = [name for name in stored if name not in expected]
    wrong = [
        f"{name} {list(info.shape)} where {list(expected[name].shape)} belongs"
        for name, info in stored.items()
        if name in expected and info.shape != expected[name].shape
    ]
    dtypes = [
        f"{name} {str(info.dtype).removeprefix('torch.')}"
        for name, info in stored.items()
        if name in expected and not _convertible(info.dtype, expected[name].dtype)
    ]
    problems = [
        f"{len(names)} {kind} tensor(s): {_shorten(names)}"
        for kind, names in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("misshapen", wrong),
            ("wrongly typed", dtypes),
        )
        if names
    ]
    if problems:
        raise CheckpointError(f"{path}: the weights do not fit config.json; {'; '.join(problems)}")


def _convertible(stored: torch.dtype, wanted: torch.dtype) -> bool:
    return stored.is_floating_point if wanted.is_floating_point else stored == wanted


def _shorten(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
