"""How much memory a model needs, in the forms it can be loaded in."""

from __future__ import annotations

from dataclasses import replace

import torch

from chatglm3.model.config import ModelConfig
from chatglm3.model.placement import weight_bytes
from chatglm3.model.quantization import Quantization


def weights_by_form(config: ModelConfig) -> dict[str, int]:
    """Bytes of the weights by dtype, or by the bits they are quantised to by `load(quantize=)`.

    A checkpoint that is quantised has its one form only.
    """
    if config.quantization_bit:
        return {f"int{config.quantization_bit}": weight_bytes(config, torch.float16)}
    if config.quantization:
        return {f"int{config.quantization.bits}": weight_bytes(config, torch.float32)}
    forms = {dtype: weight_bytes(config, getattr(torch, dtype)) for dtype in ("float32", "bfloat16", "float16")}
    for bits in (8, 4):
        forms[f"int{bits}"] = weight_bytes(replace(config, quantization=Quantization(bits)), torch.float32)
    return forms


def cache_by_context(config: ModelConfig) -> dict[int, int]:
    """Bytes of keys and values at 16 bits by tokens of context: 2K, 8K and all that the model has."""
    longest = config.seq_length
    return {
        tokens: tokens * config.kv_bytes_per_token
        for tokens in sorted({min(2048, longest), min(8192, longest), longest})
    }


def format_bytes(size: int) -> str:
    """A size for people: "11.63 GiB", "224.0 MiB"."""
    if size >= 2**30:
        return f"{size / 2**30:.2f} GiB"
    return f"{size / 2**20:.1f} MiB"
