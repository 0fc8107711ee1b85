"""Matrix products of the linear layers: native where the kernels run, torch otherwise."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from chatglm3.kernels import native
from chatglm3.kernels.layout import GroupedWeight, dequantize, dequantize_rows

_HALF = (torch.float16, torch.bfloat16)
_FEW = 16
"""Vectors up to which a product is bound by reading the weight, where matrix instructions do not help."""


def grouped_linear(x: Tensor, weight: GroupedWeight, bias: Tensor | None) -> Tensor:
    """`x` [..., in] times a weight quantised in groups, plus `bias` [out]: [..., out] in the dtype of `x`."""
    if native.runs_on(x, weight.codes, bias):
        return native.grouped_linear(x, weight, bias)
    return frozen_linear(x, partial(dequantize, weight), bias)


class _FrozenProduct(torch.autograd.Function):
    """A product whose weight is multiplied out again for the backward pass, and not kept in between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, weight: Callable[[torch.dtype], Tensor]) -> Tensor:
        ctx.weight = weight
        return F.linear(x, weight(x.dtype), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (gradient,) = gradients
        bias = gradient.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return gradient @ ctx.weight(gradient.dtype), bias, None


def frozen_linear(x: Tensor, weight: Callable[[torch.dtype], Tensor], bias: Tensor | None) -> Tensor:
    """`x` [..., in] times what `weight(dtype)` [out, in] returns, plus `bias`; the weight itself gets no gradient."""
    out: Tensor = _FrozenProduct.apply(x, bias, weight)  # type: ignore[no-untyped-call]
    return out


def embed(ids: Tensor, weight: GroupedWeight) -> Tensor:
    """Rows of a weight [rows, width] quantised in groups: `ids` [...] to float32 [..., width].

    Raises IndexError for a row that is not there (on a CPU).
    """
    if not native.runs_on(ids, weight.codes):
        return dequantize_rows(weight, ids, torch.float32)
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < weight.out_features:
        raise IndexError(f"row out of range: the weight has {weight.out_features} rows")
    return native.embed(weight, ids.long())


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`x` [..., in] times `weight` [out, in], plus `bias` [out]: [..., out], all in one dtype."""
    if weight.dtype in _HALF and x.dtype == weight.dtype and native.runs_on(x, weight, bias):
        many = x.numel() > _FEW * x.shape[-1]
        torch_is_faster = many and weight.dtype == torch.bfloat16 and native.isa() == "avx512"
        if not (torch_is_faster and native.multiplies_bfloat16()):
            return native.dense_linear(x, weight, bias)
    return F.linear(x, weight, bias)
