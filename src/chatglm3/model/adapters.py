"""Adapters on a loaded model: PEFT LoRA folders and official P-Tuning v2 prefixes; load, unload, merge."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from chatglm3.errors import AdapterError, CheckpointError
from chatglm3.model.lora import LoraLinear, pair_up, read_scale
from chatglm3.model.prefix_encoder import PrefixEncoder
from chatglm3.model.shards import list_file, read_rows
from chatglm3.model.transformer import ChatGLMModel

_FILES = ("adapter_model.safetensors", "adapter_model.bin", "model.safetensors", "pytorch_model.bin")


class Adapter(Protocol):
    """An adapter that acts on the model it was loaded into."""

    def unload(self) -> None:
        """Take the adapter out: the model is as before."""

    def merge(self) -> None:
        """Fold the adapter into the weights, for good. `AdapterError` if it cannot be folded."""


def load_adapter(model: ChatGLMModel, path: str | Path) -> Adapter:
    """Load the adapter folder `path` into `model`: PEFT's LoRA, or a P-Tuning v2 prefix as the official kits save it.

    Raises `AdapterError` if the folder holds neither, or one that does not fit, or if the model has one already.
    """
    directory = Path(path)
    file = next((directory / name for name in _FILES if (directory / name).is_file()), None)
    if file is None:
        raise AdapterError(f"{directory}: no adapter (looked for {', '.join(_FILES)})")
    if not file.name.startswith("adapter_"):
        return _PrefixAdapter(model, _read_file(file), file)
    config_file = directory / "adapter_config.json"
    config = _read_json(config_file)
    if config.get("peft_type") != "LORA":
        raise AdapterError(
            f"{config_file}: peft_type {config.get('peft_type')} is not supported; use LORA or P-Tuning v2"
        )
    return _LoraAdapter(model, _read_file(file), read_scale(config, config_file), file)


class _LoraAdapter:
    def __init__(self, model: ChatGLMModel, tensors: dict[str, Tensor], scale: float, source: Path) -> None:
        if any(isinstance(module, LoraLinear) for module in model.modules()):
            raise AdapterError(f"{source}: the model has an adapter already; unload() or merge() that one first")
        self._model = model
        self._names: list[str] = []
        for name, (a, b) in pair_up(tensors, model, source).items():
            base = model.get_submodule(name)
            device = next(iter(base.state_dict().values())).device
            self._replace(name, LoraLinear(base, a.to(device), b.to(device), scale).eval())
            self._names.append(name)

    def unload(self) -> None:
        for name in self._names:
            self._replace(name, self._layer(name).base)
        self._names = []

    def merge(self) -> None:
        for name, layer in [(name, self._layer(name)) for name in self._names]:
            self._replace(name, layer.merged())
        self._names = []

    def _layer(self, name: str) -> LoraLinear:
        layer = self._model.get_submodule(name)
        assert isinstance(layer, LoraLinear)
        return layer

    def _replace(self, name: str, layer: nn.Module) -> None:
        parent, _, child = name.rpartition(".")
        setattr(self._model.get_submodule(parent), child, layer)


class _PrefixAdapter:
    def __init__(self, model: ChatGLMModel, tensors: dict[str, Tensor], source: Path) -> None:
        if hasattr(model.transformer, "prefix_encoder"):
            raise AdapterError(f"{source}: the model has a prefix already; unload() that one first")
        self._model = model
        marker = "prefix_encoder."
        weights = {name.partition(marker)[2]: tensor for name, tensor in tensors.items() if marker in name}
        if "embedding.weight" not in weights or len(weights) < len(tensors):
            raise AdapterError(f"{source}: not a prefix (prefix_encoder.embedding.weight and nothing but its encoder)")
        config = replace(model.config, prefix_projection=any(name.startswith("trans.") for name in weights))
        with torch.device("meta"):
            encoder = PrefixEncoder(config, weights["embedding.weight"].shape[0])
        _check_prefix(encoder, weights, source)
        encoder.load_state_dict({name: tensor.to(model.device) for name, tensor in weights.items()}, assign=True)
        model.transformer.prefix_encoder = encoder.requires_grad_(False).eval()

    def unload(self) -> None:
        del self._model.transformer.prefix_encoder

    def merge(self) -> None:
        raise AdapterError("a P-Tuning prefix is not a change of weights and cannot be merged; keep it loaded")


def _check_prefix(encoder: PrefixEncoder, weights: dict[str, Tensor], source: Path) -> None:
    wanted = {name: list(tensor.shape) for name, tensor in encoder.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise AdapterError(
                f"{source}: prefix_encoder.{name} is {found.get(name, 'missing')} where this model needs "
                f"{wanted.get(name, 'nothing')}; was the prefix trained for another model?"
            )
        if not torch.isfinite(weights[name]).all():
            raise AdapterError(f"{source}: prefix_encoder.{name} holds NaN or infinite values")


def _read_file(file: Path) -> dict[str, Tensor]:
    """The tensors of a small file, copied out of it."""
    try:
        headers = list_file(file)
    except CheckpointError as error:
        raise AdapterError(str(error)) from None
    empty = [name for name, info in headers.items() if not info.shape or 0 in info.shape]
    if empty:
        raise AdapterError(f"{file}: {empty[0]} has the shape {list(headers[empty[0]].shape)}, which no adapter has")
    return {name: torch.cat([part.clone() for _, part in read_rows(name, info)]) for name, info in headers.items()}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{file}: cannot be read ({error}); an adapter folder needs it") from None
    if not isinstance(data, dict):
        raise AdapterError(f"{file}: a JSON object was expected, found {type(data).__name__}")
    return data
