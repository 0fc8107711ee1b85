"""Models from disk to memory and back.

Loading is strict: every missing, unexpected or misshapen tensor is named before a value is read, and a value that is
not finite is refused. The model is built without memory and each tensor is converted into its final place a few rows
at a time, so loading needs little more than the loaded model. Values are always copied, never left mapped: a file that
is replaced or cut short under a map kills the process, and the check for NaN reads every byte anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from chatglm3.errors import CheckpointError
from chatglm3.model.classifier import SequenceClassifier
from chatglm3.model.config import ModelConfig
from chatglm3.model.linear import QuantizedLinear
from chatglm3.model.placement import choose_device, choose_dtype, place
from chatglm3.model.saving import save_model
from chatglm3.model.shards import TensorInfo, list_tensors, read_rows
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
    config_overrides: Mapping[str, object] | None = None,
    progress: Progress | None = None,
) -> ChatGLMModel:
    """Load a checkpoint directory for inference: evaluation mode, no gradients.

    `device` and `dtype` are those of `placement.choose_device` and `choose_dtype`; `config_overrides` replaces fields
    of config.json. Quantised checkpoints keep their integers, and their scales as stored. Raises `CheckpointError` for
    files that are not a complete ChatGLM3 model, and `DeviceError`, before a weight is read, for too little memory.
    """
    config = _read_config(Path(path), config_overrides or {})
    return _load(lambda: ChatGLMModel(config), config, Path(path), device, dtype, progress)


def load_classifier(
    path: str | Path, *, device: str = "auto", dtype: str | torch.dtype = "auto", progress: Progress | None = None
) -> SequenceClassifier:
    """Load a checkpoint with a sequence-classification head, as `load_model` does. config.json says `num_labels`."""
    config = _read_config(Path(path), {})
    return _load(lambda: SequenceClassifier(config), config, Path(path), device, dtype, progress)


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
    build: Callable[[], _Model],
    config: ModelConfig,
    path: Path,
    device: str,
    dtype: str | torch.dtype,
    progress: Progress | None,
) -> _Model:
    with torch.device("meta"):
        model = build()
    expected = model.state_dict()
    stored = list_tensors(path)
    _check_names(expected, stored, path)
    kept = _kept_dtype(model)
    dtype = choose_dtype(config, choose_device(device), dtype)
    units = place(config, dtype, device)
    state: dict[str, Tensor] = {}
    done, total = 0, sum(info.nbytes for info in stored.values())
    for name, info in stored.items():
        target_dtype = info.dtype if name in kept else dtype
        state[name] = torch.empty(info.shape, dtype=target_dtype, device=units[_unit(name, len(units))])
        read_tensor(name, info, state[name])
        done += info.nbytes
        if progress is not None:
            progress(done, total)
    if _INV_FREQ not in state:
        frequencies = RotaryEmbedding(config).get_buffer("inv_freq")
        state[_INV_FREQ] = frequencies.to(units[0], dtype)
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def _kept_dtype(model: nn.Module) -> set[str]:
    """Names of the tensors of quantised layers that are not converted: integers and scales."""
    layers = [name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)]
    return {f"{layer}.{tensor}" for layer in layers for tensor in ("weight", "weight_scale")}


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
