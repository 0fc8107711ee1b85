"""The linear layers: one place that knows how a weight is stored."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatglm3.errors import CheckpointError


class QuantizedLinear(nn.Module):
    """A linear layer stored as the official int8 or int4 checkpoints store it.

    `weight` is int8 `[out, in]`, or `[out, in / 2]` with element 2j in the high and 2j + 1 in the low nibble (both
    signed); `weight_scale` is `[out]`. The weight is multiplied out to the dtype of the activations at each call.
    """

    def __init__(self, in_features: int, out_features: int, bits: int, bias: bool) -> None:
        super().__init__()
        if bits == 4 and in_features % 2:
            raise CheckpointError(f"int4 needs an even number of inputs, not {in_features}")
        self.bits = bits
        self.in_features, self.out_features = in_features, out_features
        columns = in_features * bits // 8
        self.register_buffer("weight", torch.empty(out_features, columns, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.empty(out_features))
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features)) if bias else None)
        self.weight: Tensor
        self.weight_scale: Tensor
        self.bias: nn.Parameter | None

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight `[out, in]`: integer times scale, rounded to the scale's dtype as the official code does."""
        integers = self.weight if self.bits == 8 else unpack_int4(self.weight)
        scale = self.weight_scale
        return (integers.to(scale.dtype) * scale[:, None]).to(dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        """Move as asked, but keep the scale's dtype, on which the rounding of `dequantize` depends."""
        scale_dtype = self.weight_scale.dtype
        self.weight_scale = self.weight_scale.view(torch.uint8)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.weight_scale = self.weight_scale.view(scale_dtype)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., in] to [..., out]."""
        return F.linear(x, self.dequantize(x.dtype), self.bias)


def unpack_int4(packed: Tensor) -> Tensor:
    """Signed nibbles of int8 `[out, n]` as int8 `[out, 2 n]`, the high nibble first."""
    high, low = packed >> 4, (packed << 4) >> 4
    return torch.stack((high, low), dim=-1).flatten(-2)


def make_linear(in_features: int, out_features: int, *, bias: bool = False, bits: int = 0) -> nn.Module:
    """The layer that stores a weight at `bits` (0: as floating-point numbers)."""
    if bits:
        return QuantizedLinear(in_features, out_features, bits, bias)
    return nn.Linear(in_features, out_features, bias=bias)
