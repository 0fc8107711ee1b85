"""Which dtype and which devices a model gets, and whether it fits, all said before a weight is read.

A model is placed in units, in order: the embedding, each layer, and the final norm with the output layer. Units stay in
order, so activations change device at few places.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch

from chatglm3.errors import DeviceError
from chatglm3.kernels import native
from chatglm3.kernels.layout import shapes
from chatglm3.model.config import ModelConfig
from chatglm3.model.memory import free_memory

_TINY_BYTES = 500 << 20
_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" is the first of CUDA, MPS and CPU that exists.

    Raises `DeviceError` for a device that does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if _has_mps() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise DeviceError(f"device {name!r} is unknown; use auto, cpu, cuda, cuda:N or mps") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise DeviceError(f"device {name!r} does not exist: torch finds {found} CUDA device(s); use auto or cpu")
    if device.type == "mps" and not _has_mps():
        raise DeviceError("device 'mps' does not exist on this machine; use auto or cpu")
    if device.type not in ("cpu", "cuda", "mps"):
        raise DeviceError(f"device {name!r} is not supported; use auto, cpu, cuda, cuda:N or mps")
    return device


def choose_dtype(config: ModelConfig, device: torch.device, dtype: str | torch.dtype = "auto") -> torch.dtype:
    """The dtype of weights and activations. Raises `DeviceError` for one that is none of float32, float16 and bfloat16.

    "auto" on CUDA and MPS is the checkpoint's 16-bit dtype (MPS: float16). On a CPU it is never float16, which few CPUs
    compute fast: it is bfloat16 where the native kernels use vectors, the CPU has instructions for it, or float32 does
    not fit in memory; otherwise, and for models under 500 MB or quantised in groups, float32. float16 on a CPU works
    when asked for by name.
    """
    if dtype != "auto":
        for name, named in _DTYPES.items():
            if dtype in (name, named):
                return named
        raise DeviceError(f"dtype {dtype} is not supported; use auto, {', '.join(_DTYPES)}")
    if device.type == "cuda":
        stored = config.extra.get("dtype", config.torch_dtype)
        return torch.bfloat16 if stored == "bfloat16" else torch.float16
    if device.type == "mps":
        return torch.float16
    needed = weight_bytes(config, torch.float32)
    if config.quantization or needed < _TINY_BYTES:
        return torch.float32
    return torch.bfloat16 if _cpu_computes_bfloat16() or needed > free_memory(device) else torch.float32


def unit_bytes(config: ModelConfig, dtype: torch.dtype) -> list[int]:
    """Bytes of weights in each unit: embedding, layers, final norm with output layer."""
    h, f, stored = config.hidden_size, config.ffn_hidden_size, config.quantization
    bits = stored.bits if stored else config.quantization_bit
    matrices = ((config.qkv_size, h), (h, config.num_attention_heads * config.kv_channels), (2 * f, h), (h, f))
    layer = (2 * h + config.add_qkv_bias * config.qkv_size) * dtype.itemsize
    layer += sum(_matrix_bytes(config, rows, columns, bits, dtype) for rows, columns in matrices)
    embedding, output = (
        _matrix_bytes(config, config.padded_vocab_size, h, table_bits, dtype)
        for table_bits in ((stored.embedding_bits, stored.output_bits) if stored else (0, 0))
    )
    return [embedding, *[layer] * config.num_layers, output + h * dtype.itemsize]


def _matrix_bytes(config: ModelConfig, rows: int, columns: int, bits: int, dtype: torch.dtype) -> int:
    """Bytes of a weight of `bits` 4 or 8 with its scales, otherwise of `dtype`."""
    if bits not in (4, 8):
        return rows * columns * dtype.itemsize
    if config.quantization is None:
        return rows * columns * bits // 8 + rows * 2
    codes, scales, row_scale = shapes(columns, rows, bits, config.quantization.group_size)
    return prod(codes) + prod(scales) + 4 * prod(row_scale)


def weight_bytes(config: ModelConfig, dtype: torch.dtype) -> int:
    """Bytes of all weights."""
    return sum(unit_bytes(config, dtype))


def check_memory(config: ModelConfig, dtype: torch.dtype, devices: Sequence[torch.device]) -> None:
    """Raise `DeviceError` with the numbers if the weights do not fit into what is free on `devices` together."""
    plan(config, [free_memory(device) for device in devices], dtype)


def plan(config: ModelConfig, budgets: Sequence[int], dtype: torch.dtype) -> list[int]:
    """The index of the device that takes each unit, for devices with `budgets` free bytes.

    One device if the model fits on one (the one with most memory); otherwise all, each filled to about the same share.
    Raises `DeviceError` if it does not fit.
    """
    sizes = unit_bytes(config, dtype)
    largest = max(range(len(budgets)), key=lambda i: budgets[i])
    if sum(sizes) <= budgets[largest]:
        return [largest] * len(sizes)
    for percent in range(5, 101, 5):
        filled = _fill(sizes, [budget * percent // 100 for budget in budgets])
        if filled is not None:
            return filled
    name = str(dtype).removeprefix("torch.")
    raise DeviceError(
        f"the model needs {sum(sizes) / 2**30:.1f} GiB as {name}, {sum(budgets) / 2**30:.1f} GiB free on "
        f"{len(budgets)} device(s): free some memory, or choose a smaller dtype, a quantised checkpoint or "
        "another device"
    )


def place(config: ModelConfig, dtype: torch.dtype, device: str) -> list[torch.device]:
    """The device of each unit. With "auto" on a machine with several GPUs the layers may be spread over them.

    Raises `DeviceError` if the device does not exist or has too little memory.
    """
    chosen = choose_device(device)
    devices = [chosen]
    if device == "auto" and chosen.type == "cuda":
        devices = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    return [devices[i] for i in plan(config, [free_memory(d) for d in devices], dtype)]


def _fill(sizes: Sequence[int], budgets: Sequence[int]) -> list[int] | None:
    taken: list[int] = []
    device, left = 0, budgets[0]
    for size in sizes:
        while size > left:
            device += 1
            if device == len(budgets):
                return None
            left = budgets[device]
        taken.append(device)
        left -= size
    return taken


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def _cpu_computes_bfloat16() -> bool:
    """Whether bfloat16 is faster than float32: with vector kernels, which read half, or instructions of its own."""
    return native.isa() in ("avx2", "avx512") or native.multiplies_bfloat16()
