"""The native kernels: whether they were built, which of them run on this CPU, and the calls.

The extension is built by `pip install`; a package installed with CHATGLM3_PURE=1 has none and works on torch alone.
Without an order the fastest that the CPU has is taken; the environment variable CHATGLM3_KERNELS names another one.
"""

from __future__ import annotations

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from chatglm3.errors import DeviceError
from chatglm3.kernels.layout import GroupedWeight

_EXTENSION = "chatglm3.kernels._native"
_VARIABLE = "CHATGLM3_KERNELS"
TORCH = "torch"
_PIECE, _FEW_PIECES = 32768, 16  # numbers; torch computes no more on one thread
_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
DTYPES = frozenset(_TYPES)
"""Of weights that are not quantised, keys and values."""


def built() -> bool:
    """Whether the package was installed with its native kernels."""
    return find_spec(_EXTENSION) is not None


def supported() -> list[str]:
    """What can run here, the fastest first: "avx512", "avx2", "portable" and always "torch"."""
    return [*import_module(_EXTENSION).supported(), TORCH] if built() else [TORCH]


def isa() -> str:
    """What runs: one of `supported`. Raises `DeviceError` if CHATGLM3_KERNELS names something else."""
    wanted, found = os.environ.get(_VARIABLE, ""), supported()
    if wanted and wanted not in found:
        missing = "" if built() else "; the native kernels are not built: install a C++ compiler and the package again"
        raise DeviceError(f"{_VARIABLE}={wanted} cannot run here; this machine runs {', '.join(found)}{missing}")
    return wanted or found[0]


@cache
def _extension() -> Any:
    """The extension module, set to `isa`; None if torch does the work."""
    name = isa()
    if name == TORCH:
        return None
    module = import_module(_EXTENSION)
    module.choose(name)
    return module


def reset() -> None:
    """Look at CHATGLM3_KERNELS again."""
    _extension.cache_clear()


def multiplies_bfloat16() -> bool:
    """Whether torch has instructions for bfloat16 products on this CPU; false where torch is too old to tell."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    has_instructions = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return has_instructions and bool(torch.backends.mkldnn.enabled)


def runs_on(*tensors: Tensor | None) -> bool:
    """Whether the native kernels take these tensors: on the CPU, and no gradient is asked for."""
    if _extension() is None:
        return False
    grad = torch.is_grad_enabled()
    for tensor in tensors:  # noqa: SIM110 - asked a hundred times a token, and all() takes twice as long
        if tensor is not None and (not tensor.is_cpu or (grad and tensor.requires_grad)):
            return False
    return True


def runs_in_float32(*tensors: Tensor) -> bool:
    """Whether the kernels of everything but products take these tensors."""
    for tensor in tensors:
        if tensor.dtype != torch.float32:
            return False
    return runs_on(*tensors)


def grouped_linear(x: Tensor, weight: GroupedWeight, bias: Tensor | None) -> Tensor:
    """`x` [..., in] times a packed weight: [..., out] in the dtype of `x`; each group of `x` is rounded to int8."""
    rows, bias, out = _operands(x, weight.in_features, bias, weight.out_features)
    codes, scales, row_scale = weight.codes, weight.scales, weight.row_scale
    _check_contiguous(codes, scales, row_scale)
    _extension().grouped_linear(
        rows.data_ptr(),
        rows.shape[0],
        weight.in_features,
        codes.data_ptr(),
        scales.data_ptr(),
        row_scale.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        codes.shape[1],
        weight.group_size,
        weight.bits,
        weight.out_features,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return convert(out, x.dtype).view(*x.shape[:-1], -1)


def dense_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x` [..., in] times `weight` [out, in]: [..., out] in the dtype of `x`, summed in float32."""
    rows, bias, out = _operands(x, weight.shape[1], bias, weight.shape[0])
    _check_contiguous(weight)
    _extension().dense_linear(
        rows.data_ptr(),
        rows.shape[0],
        weight.shape[1],
        weight.data_ptr(),
        _TYPES[weight.dtype],
        0 if bias is None else bias.data_ptr(),
        weight.shape[0],
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return convert(out, x.dtype).view(*x.shape[:-1], -1)


def embed(weight: GroupedWeight, ids: Tensor) -> Tensor:
    """Rows of a packed weight as float32: `ids` int64 [...], each of them a row of the weight, to [..., in]."""
    ids = ids.contiguous()
    codes, scales, row_scale = weight.codes, weight.scales, weight.row_scale
    _check_contiguous(codes, scales, row_scale)
    out = torch.empty(*ids.shape, weight.in_features)
    _extension().embed(
        codes.data_ptr(),
        scales.data_ptr(),
        row_scale.data_ptr(),
        codes.shape[1],
        weight.group_size,
        weight.bits,
        weight.in_features,
        ids.data_ptr(),
        ids.numel(),
        out.data_ptr(),
    )
    return out


def add(a: Tensor, b: Tensor) -> Tensor:
    """`ops.add` of float32 tensors of one shape."""
    _check_shape("both tensors", b.shape, a.shape)
    a, b = a.contiguous(), b.contiguous()
    out = torch.empty_like(a)
    _extension().add(a.data_ptr(), b.data_ptr(), a.numel(), out.data_ptr(), torch.get_num_threads())
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`ops.rms_norm` of float32 tensors."""
    x, weight, width = x.contiguous(), weight.contiguous(), x.shape[-1]
    _check_shape("the norm's weight", weight.shape, (width,))
    out = torch.empty_like(x)
    rows = x.numel() // width
    _extension().rms_norm(x.data_ptr(), weight.data_ptr(), eps, rows, width, out.data_ptr(), torch.get_num_threads())
    return out


def swiglu(x: Tensor) -> Tensor:
    """`ops.swiglu` of a float32 tensor."""
    x, width = x.contiguous(), x.shape[-1] // 2
    out = x.new_empty(*x.shape[:-1], width)
    _extension().swiglu(x.data_ptr(), x.numel() // (2 * width), width, out.data_ptr(), torch.get_num_threads())
    return out


def apply_rope(x: Tensor, rope: Tensor) -> Tensor:
    """`ops.apply_rope` of float32 tensors with b = 1; the heads of one token must follow each other."""
    _, tokens, heads, width = x.shape
    out, pairs = torch.empty(x.shape), rope.shape[-2]
    _check_shape("the rope", rope.shape, (1, tokens, min(pairs, width // 2), 2))
    rope = rope.contiguous()
    _extension().apply_rope(x.data_ptr(), tokens, x.stride(1), heads, width, rope.data_ptr(), pairs, out.data_ptr())
    return out


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`ops.attend` of tensors of one dtype with s = 1, computed in float32."""
    b, _, heads, width = q.shape
    groups, count = k.shape[1], k.shape[2]
    for held in (k, v):
        _check_shape("keys and values", held.shape, (b, groups, count, width))
    dtype, q = q.dtype, q.float().contiguous()
    out = torch.empty(b, 1, heads * width)
    for i in range(b):
        _extension().attend(
            q[i].data_ptr(),
            heads,
            k[i].data_ptr(),
            v[i].data_ptr(),
            groups,
            k.stride(1),
            count,
            width,
            _TYPES[k.dtype],
            width**-0.5,
            out[i].data_ptr(),
            torch.get_num_threads(),
        )
    return out.to(dtype)


def convert(x: Tensor, dtype: torch.dtype) -> Tensor:
    """`x` in another dtype; a few rows in pieces so small that torch does not share them out to its own pool."""
    if x.dtype == dtype or x.device.type != "cpu" or x.numel() > _FEW_PIECES * _PIECE:
        return x.to(dtype)
    out = torch.empty(x.shape, dtype=dtype, device=x.device)
    flat, target = x.reshape(-1), out.view(-1)
    for start in range(0, flat.numel(), _PIECE):
        target[start : start + _PIECE].copy_(flat[start : start + _PIECE])
    return out


def _operands(
    x: Tensor, in_features: int, bias: Tensor | None, out_features: int
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Activations [n, in] and bias [out] as float32, and room for the result [n, out]."""
    _check_shape("the activations", x.shape[-1:], (in_features,))
    rows, out = x.reshape(-1, in_features).float().contiguous(), torch.empty(x.numel() // in_features, out_features)
    if bias is None:
        return rows, None, out
    _check_shape("the bias", bias.shape, (out_features,))
    return rows, bias.float().contiguous(), out


def _check_shape(what: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """The kernels take addresses: what they read must be there."""
    if shape != wanted:
        raise ValueError(f"{what} must be {list(wanted)}, not {list(shape)}")


def _check_contiguous(*tensors: Tensor) -> None:
    for tensor in tensors:
        if not tensor.is_contiguous():
            raise ValueError("a weight must be contiguous for the native kernels")
