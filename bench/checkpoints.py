"""The random checkpoints of the real width that `cpu.py` measures; one that is in its folder already is taken as it is.

All come from the same weights: the half-precision folder is quantised by this project's own command for us and by the
`gguf` package for llama.cpp.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from chatglm3.model.quantization import Quantization
from chatglm3.model.quantize_checkpoint import quantize_checkpoint
from chatglm3.model.saving import save_model, write_config
from chatglm3.model.tensor_file import TensorFile
from chatglm3.model.transformer import ChatGLMModel
from random_model import random_model, real_config


def half_checkpoint(folder: Path, layers: int) -> Path:
    """bfloat16 weights."""
    path = folder / f"half-{layers}"
    if not (path / "config.json").exists():
        _say(path)
        model = random_model(layers, torch.bfloat16)
        model.transformer.rotary_pos_emb.get_buffer("inv_freq").zero_()  # never used, but it must be finite
        save_model(model, path)
    return path


def gguf_file(folder: Path, layers: int, kind: str) -> Path:
    """The same weights in llama.cpp's `kind`, Q4_0 or Q8_0."""
    from gguf import GGMLQuantizationType

    from gguf_checkpoint import write_gguf

    path = folder / f"{kind}-{layers}.gguf"
    if not path.exists():
        half = half_checkpoint(folder, layers)
        _say(path)
        write_gguf(half, path, GGMLQuantizationType[kind])
    return path


def quantized_checkpoint(folder: Path, layers: int, bits: int) -> Path:
    """The same weights at `bits`, in this project's format."""
    path = folder / f"int{bits}-{layers}"
    if not path.exists():
        half = half_checkpoint(folder, layers)
        _say(path)
        quantize_checkpoint(half, path, Quantization(bits))
    return path


def random_quantized_checkpoint(folder: Path, layers: int, bits: int) -> Path:
    """Random integers and scales straight in this project's format: a file to load, with nothing to quantise first."""
    path = folder / f"random-int{bits}-{layers}"
    if (path / "config.json").exists():
        return path
    _say(path)
    path.mkdir(exist_ok=True)
    config = replace(real_config(layers), quantization=Quantization(bits), torch_dtype="bfloat16")
    with torch.device("meta"):
        tensors = ChatGLMModel(config).bfloat16().state_dict()
    with TensorFile(path / "model.safetensors", tensors) as file:  # with sums, as `chatglm3 quantize` writes it
        for name, tensor in tensors.items():
            file.write(name, _random_like(name, tensor))
    write_config(path / "config.json", config)
    return path


def _random_like(name: str, tensor: Tensor) -> Tensor:
    """Values of about the size that trained weights have: 0.02 where the integers are of 4 bits, and norms of one."""
    if tensor.dtype == torch.uint8:
        return torch.randint(0, 256, tensor.shape, dtype=torch.uint8)
    if tensor.dtype == torch.int8:
        return torch.randint(-127, 128, tensor.shape, dtype=torch.int8)
    if name.endswith("row_scale"):
        return torch.full(tensor.shape, 5e-5)
    if name.endswith("layernorm.weight"):
        return torch.ones(tensor.shape, dtype=tensor.dtype)
    return torch.randn(tensor.shape).mul_(0.02).to(tensor.dtype)


def _say(path: Path) -> None:
    print(f"writing {path.name} ...", flush=True)
