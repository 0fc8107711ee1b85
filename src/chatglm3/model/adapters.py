"""Adapters on a loaded model: PEFT LoRA folders and official P-Tuning v2 prefixes; load, unload, merge.

At most one acts on a model at a time. Several can be read and then take turns, each in `acting`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from chatglm3.errors import AdapterError, CheckpointError
from chatglm3.model.lora import LoraLinear, pair_up, read_scale
from chatglm3.model.prefix_encoder import PrefixEncoder
from chatglm3.model.shards import list_file, list_tensors, read_rows
from chatglm3.model.transformer import ChatGLMModel

_FILES = ("adapter_model.safetensors", "adapter_model.bin", "model.safetensors", "pytorch_model.bin")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_AGAIN = "the model has an adapter already; load it without adapter=, and then add each by its name"


class Adapter(Protocol):
    """An adapter for the model that it was read for; it acts while it is loaded."""

    def load(self) -> None:
        """Put the adapter into the model."""

    def unload(self) -> None:
        """Take the adapter out: the model is as before. Done twice, or halfway through `load`, it does the same."""

    def merge(self) -> None:
        """Fold the adapter into the weights, for good. `AdapterError` if it cannot be folded."""


def load_adapter(model: ChatGLMModel, path: str | Path) -> Adapter:
    """`read_adapter`, and put it into the model."""
    adapter = read_adapter(model, path)
    adapter.load()
    return adapter


def read_adapter(model: ChatGLMModel, path: str | Path) -> Adapter:
    """Read the adapter folder `path` for `model`: PEFT's LoRA, or a P-Tuning v2 prefix as the official kits save it.

    Raises `AdapterError` if the folder holds neither, or one that does not fit, or if one is in the model already.
    """
    file = find_adapter(Path(path))
    if not is_lora(file):
        return _PrefixAdapter(model, _read_file(file), file)
    if any(isinstance(module, LoraLinear) for module in model.modules()):
        raise AdapterError(f"{file}: {_AGAIN}")
    pairs, scale = read_lora(model, file)
    return _LoraAdapter(model, pairs, scale)


@contextmanager
def acting(adapter: Adapter | None) -> Iterator[None]:
    """Have an adapter in its model for a while; None is the bare model."""
    if adapter is None:
        yield
        return
    try:
        adapter.load()
        yield
    finally:
        try:
            adapter.unload()
        except BaseException:  # Ctrl-C in the middle of it
            adapter.unload()
            raise


def find_adapter(directory: Path) -> Path:
    """The file of an adapter's tensors; `AdapterError` if the folder has none."""
    if not directory.is_dir():
        raise AdapterError(f"{directory}: no adapter, because there is no such folder")
    file = next((directory / name for name in _FILES if (directory / name).is_file()), None)
    if (file is None or not is_lora(file)) and _is_model(directory):
        raise AdapterError(f"{directory}: this is a whole model and no adapter; use it as --model")
    if file is None:
        raise AdapterError(f"{directory}: no adapter (looked for {', '.join(_FILES)})")
    return file


def is_lora(file: Path) -> bool:
    """Whether a file that `find_adapter` found is PEFT's; the others are P-Tuning prefixes."""
    return file.name.startswith("adapter_")


def read_lora(model: ChatGLMModel, file: Path) -> tuple[dict[str, tuple[Tensor, Tensor]], float]:
    """A [r, in] and B [out, r] for module names of `model` (which may be on the device "meta"), and the factor on B A.

    Raises `AdapterError` if the file or its adapter_config.json cannot be read, or does not fit.
    """
    config_file = file.with_name("adapter_config.json")
    config = _read_json(config_file)
    if config.get("peft_type") != "LORA":
        raise AdapterError(
            f"{config_file}: peft_type {config.get('peft_type')} is not supported; use LORA or P-Tuning v2"
        )
    r, scale = read_scale(config, config_file)
    return pair_up(_read_file(file), model, file, r, _other_model(file)), scale


class _LoraAdapter:
    def __init__(self, model: ChatGLMModel, pairs: dict[str, tuple[Tensor, Tensor]], scale: float) -> None:
        self._places: list[tuple[nn.Module, str]] = []
        self._layers: list[LoraLinear] = []
        for name, (a, b) in pairs.items():
            base = model.get_submodule(name)
            device = next(iter(base.state_dict().values())).device
            parent, _, child = name.rpartition(".")
            self._places.append((model.get_submodule(parent), child))
            self._layers.append(LoraLinear(base, a.to(device), b.to(device), scale).eval())

    def load(self) -> None:
        self._put(self._layers)

    def unload(self) -> None:
        self._put([layer.base for layer in self._layers])

    def merge(self) -> None:
        self._put([layer.merged() for layer in self._layers])
        self._places, self._layers = [], []

    def _put(self, layers: Sequence[nn.Module]) -> None:
        for (parent, child), layer in zip(self._places, layers, strict=True):
            setattr(parent, child, layer)


class _PrefixAdapter:
    def __init__(self, model: ChatGLMModel, tensors: dict[str, Tensor], source: Path) -> None:
        if hasattr(model.transformer, "prefix_encoder"):
            raise AdapterError(f"{source}: {_AGAIN}")
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
        self._encoder = encoder.requires_grad_(False).eval()

    def load(self) -> None:
        self._model.transformer.prefix_encoder = self._encoder

    def unload(self) -> None:
        if hasattr(self._model.transformer, "prefix_encoder"):
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
                f"{wanted.get(name, 'nothing')}; {_other_model(source)}"
            )
        if weights[name].dtype != weights["embedding.weight"].dtype:
            raise AdapterError(f"{source}: prefix_encoder.{name} is {weights[name].dtype}, unlike the embedding")
        if not torch.isfinite(weights[name]).all():
            raise AdapterError(f"{source}: prefix_encoder.{name} holds NaN or infinite values")


def _is_model(directory: Path) -> bool:
    """Whether a folder holds the weights of a model. The official kits put a config.json beside a prefix, too."""
    if not (directory / "config.json").is_file():
        return False
    try:
        return not all("prefix_encoder." in name for name in list_tensors(directory))
    except CheckpointError:
        return False


def _other_model(file: Path) -> str:
    """What to do about an adapter that does not fit."""
    config_file = file.with_name("adapter_config.json")
    name = _read_json(config_file).get("base_model_name_or_path") if config_file.is_file() else None
    known = f" ({name})" if isinstance(name, str) and name.isprintable() and name else ""
    return f"it was trained for another model{known}; give that one as --model"


def _read_file(file: Path) -> dict[str, Tensor]:
    """The tensors of a small file, copied out of it."""
    try:
        headers = list_file(file)
    except CheckpointError as error:
        raise AdapterError(str(error)) from None
    empty = [name for name, info in headers.items() if not info.shape or 0 in info.shape]
    if empty:
        raise AdapterError(f"{file}: {empty[0]} has the shape {list(headers[empty[0]].shape)}, which no adapter has")
    other = next((name for name, info in headers.items() if info.dtype not in _DTYPES), None)
    if other is not None:
        raise AdapterError(f"{file}: {other} is stored as {headers[other].dtype}, which no adapter is")
    return {name: torch.cat([part.clone() for _, part in read_rows(name, info)]) for name, info in headers.items()}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{file}: cannot be read ({error}); an adapter folder needs it") from None
    if not isinstance(data, dict):
        raise AdapterError(f"{file}: a JSON object was expected, found {type(data).__name__}")
    return data
