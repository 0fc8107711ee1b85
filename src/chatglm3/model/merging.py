"""A LoRA adapter folded into a checkpoint directory, a few rows at a time: the model is never in memory."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from chatglm3.errors import AdapterError, CheckpointError
from chatglm3.model.adapters import find_adapter, is_lora, read_lora
from chatglm3.model.checkpoint import Progress, check_tensors
from chatglm3.model.config import ModelConfig
from chatglm3.model.new_folder import copy_tokenizer, new_folder, require_new
from chatglm3.model.placement import choose_dtype
from chatglm3.model.quantization import Quantization
from chatglm3.model.quantize_checkpoint import quantize_checkpoint
from chatglm3.model.saving import plan_shards, write_config, write_index
from chatglm3.model.shards import TensorInfo, read_rows
from chatglm3.model.tensor_file import TensorFile
from chatglm3.model.transformer import ChatGLMModel

SHARD_BYTES = 2 * 10**9


@dataclass(frozen=True)
class MergedCheckpoint:
    """What was written: how many layers the adapter changed, and the bytes of all weights."""

    layers: int
    nbytes: int


@dataclass(frozen=True)
class _Update:
    """scale * B A, for A [r, in] and B [out, r] in fp32."""

    a: Tensor
    b: Tensor
    scale: float

    def added(self, rows: slice, values: Tensor) -> Tensor:
        """`values`, rows of the weight, with the update, in fp32."""
        return values.float() + self.scale * (self.b[rows] @ self.a)


def merge_checkpoint(
    source: Path,
    adapter: Path,
    target: Path,
    *,
    dtype: str | torch.dtype = "auto",
    max_shard_bytes: int = SHARD_BYTES,
    quantization: Quantization | None = None,
    progress: Progress | None = None,
) -> MergedCheckpoint:
    """Write the model in the folder `source` with the LoRA in the folder `adapter` to the folder `target`.

    The sums are computed in fp32 and rounded once, to `dtype` or ("auto") to what each tensor is stored in. Tensors
    have the official names, and the tokenizer's files are copied. With `quantization` the merged weights, which are on
    the disk meanwhile, are then quantised. `target` appears when it is complete. `progress` is called with the bytes
    read and the bytes to read, by each of the two works. Raises `AdapterError` for an adapter that does not fit or is
    no LoRA, and `CheckpointError` if `source` is quantised or no complete model, if `target` holds something, or if the
    disk refuses.
    """
    target = target.resolve()
    require_new(target)
    config = _full_precision(source)
    stored = check_tensors(ChatGLMModel, config, source)
    updates = _read_updates(config, adapter)
    rounded = None if dtype == "auto" else choose_dtype(config, torch.device("cpu"), dtype)
    if rounded is not None:
        extra = {name: value for name, value in config.extra.items() if name != "dtype"}
        config = replace(config, torch_dtype=str(rounded).removeprefix("torch."), extra=extra)
    work = _Merge(source, config, stored, updates, rounded, progress)
    if quantization is None:
        work.write(target, max_shard_bytes)
        return MergedCheckpoint(len(updates), work.nbytes)
    merged = target.with_name(f".{target.name}.merged")
    try:
        shutil.rmtree(merged, ignore_errors=True)
        work.write(merged, max_shard_bytes)
        written = quantize_checkpoint(merged, target, quantization, progress)
    finally:
        shutil.rmtree(merged, ignore_errors=True)
    return MergedCheckpoint(len(updates), written.nbytes)


def _full_precision(source: Path) -> ModelConfig:
    config = ModelConfig.from_pretrained(source)
    bits = config.quantization.bits if config.quantization else config.quantization_bit
    if bits:
        raise CheckpointError(
            f"{source}: quantised to {bits} bits, and integers take no update; merge onto the full-precision weights "
            f"and quantise the result, which --quantize {bits} does in one go"
        )
    return config


def _read_updates(config: ModelConfig, adapter: Path) -> dict[str, _Update]:
    """By the names of the weights that they change."""
    file = find_adapter(adapter)
    if not is_lora(file):
        raise AdapterError(
            f"{adapter}: a P-Tuning prefix is not a change of weights and cannot be merged; load it with --adapter"
        )
    with torch.device("meta"):
        model = ChatGLMModel(config)
    pairs, scale = read_lora(model, file)
    return {f"{name}.weight": _Update(a.float(), b.float(), scale) for name, (a, b) in pairs.items()}


class _Merge:
    """Where the weights come from, and what becomes of them."""

    def __init__(
        self,
        source: Path,
        config: ModelConfig,
        stored: Mapping[str, TensorInfo],
        updates: Mapping[str, _Update],
        dtype: torch.dtype | None,
        progress: Progress | None,
    ) -> None:
        self._source, self._config, self._updates, self._progress = source, config, updates, progress
        with torch.device("meta"):
            names = [name for name in ChatGLMModel(config).state_dict() if name in stored]
            self._planned = {n: torch.empty(stored[n].shape, dtype=dtype or stored[n].dtype) for n in names}
        self._stored = {name: stored[name] for name in names}
        self._read, self._total = 0, sum(info.nbytes for info in stored.values())

    @property
    def nbytes(self) -> int:
        """Of all weights as they are written."""
        return sum(tensor.nbytes for tensor in self._planned.values())

    def write(self, target: Path, max_shard_bytes: int) -> None:
        """Write the folder."""
        shards = plan_shards({name: tensor.nbytes for name, tensor in self._planned.items()}, max_shard_bytes)
        with new_folder(target, self.nbytes) as folder:
            for file, names in shards.items():
                with TensorFile(folder / file, {name: self._planned[name] for name in names}) as writer:
                    for name in names:
                        self._write_tensor(writer, name)
            if len(shards) > 1:
                write_index(folder / "model.safetensors.index.json", shards, self.nbytes)
            write_config(folder / "config.json", self._config)
            copy_tokenizer(self._source, folder)

    def _write_tensor(self, writer: TensorFile, name: str) -> None:
        info, update, dtype = self._stored[name], self._updates.get(name), self._planned[name].dtype
        for rows, values in read_rows(name, info):
            self._read += values.nbytes
            merged = (values if update is None else update.added(rows, values)).to(dtype)
            del values  # lets go of the file's pages
            if not all(torch.isfinite(bound) for bound in torch.aminmax(merged)):
                shown = str(dtype).removeprefix("torch.")
                raise CheckpointError(
                    f"{info.file}: {name} is not finite as {shown} once it is merged; try another dtype"
                )
            writer.write(name, merged, rows.start)
            if self._progress is not None:
                self._progress(self._read, self._total)
