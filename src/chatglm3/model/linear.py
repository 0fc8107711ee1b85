"""The linear layers and the embedding: one place that knows how a weight is stored."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from chatglm3.errors import CheckpointError
from chatglm3.kernels import products
from chatglm3.kernels.layout import GroupedWeight, shapes
from chatglm3.model.config import ModelConfig

GROUPED_TENSORS = ("weight", "weight_scale", "row_scale")
"""What follows a layer's name in the names of the tensors of its weight, if that is quantised in groups."""


class Linear(nn.Linear):
    """A linear layer of floating-point weights."""

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., in] to [..., out]."""
        return products.linear(x, self.weight, self.bias)


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
        return products.frozen_linear(x, self.dequantize, self.bias)


def unpack_int4(packed: Tensor) -> Tensor:
    """Signed nibbles of int8 `[out, n]` as int8 `[out, 2 n]`, the high nibble first."""
    high, low = packed >> 4, (packed << 4) >> 4
    return torch.stack((high, low), dim=-1).flatten(-2)


class Grouped(nn.Module):
    """A weight [out, in] quantised in groups, in the layout of `kernels.layout`, as buffers."""

    def __init__(self, in_features: int, out_features: int, bits: int, group_size: int) -> None:
        super().__init__()
        self.bits = bits
        self.in_features, self.out_features = in_features, out_features
        codes, scales, row_scale = shapes(in_features, out_features, bits, group_size)
        self.register_buffer("weight", torch.empty(codes, dtype=torch.uint8))
        self.register_buffer("weight_scale", torch.empty(scales, dtype=torch.int8))
        self.register_buffer("row_scale", torch.empty(row_scale))
        self.weight: Tensor
        self.weight_scale: Tensor
        self.row_scale: Tensor

    @property
    def packed(self) -> GroupedWeight:
        """The three buffers as the kernels take them."""
        return GroupedWeight(
            self.weight, self.weight_scale, self.row_scale, self.bits, self.in_features, self.out_features
        )

    @packed.setter
    def packed(self, weight: GroupedWeight) -> None:
        self.weight, self.weight_scale, self.row_scale = weight.codes, weight.scales, weight.row_scale

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Grouped:
        """Move as asked, but keep `row_scale` in float32."""
        self.row_scale = self.row_scale.view(torch.uint8)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.row_scale = self.row_scale.view(torch.float32)
        return self


class GroupedLinear(Grouped):
    """A linear layer whose weight is quantised in groups."""

    def __init__(self, in_features: int, out_features: int, bits: int, group_size: int, bias: bool) -> None:
        super().__init__(in_features, out_features, bits, group_size)
        self.register_parameter("bias", nn.Parameter(torch.empty(out_features)) if bias else None)
        self.bias: nn.Parameter | None

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., in] to [..., out]."""
        return products.grouped_linear(x, self.packed, self.bias)


class GroupedEmbedding(Grouped):
    """An embedding whose table [rows, width] is quantised in groups; only the rows asked for are multiplied out."""

    def __init__(self, rows: int, width: int, bits: int, group_size: int) -> None:
        super().__init__(width, rows, bits, group_size)

    def forward(self, ids: Tensor) -> Tensor:
        """`ids` [...] to float32 [..., width]."""
        return products.embed(ids, self.packed)


def make_linear(config: ModelConfig, in_features: int, out_features: int, *, bias: bool = False) -> nn.Module:
    """A linear layer of a block, as `config` says that it is stored."""
    if config.quantization:
        return GroupedLinear(in_features, out_features, config.quantization.bits, config.quantization.group_size, bias)
    if config.quantization_bit:
        return QuantizedLinear(in_features, out_features, config.quantization_bit, bias)
    return Linear(in_features, out_features, bias=bias)


def make_output_layer(config: ModelConfig) -> nn.Module:
    """The layer from hidden states to logits."""
    stored = config.quantization
    if stored and stored.output_bits < 16:
        return GroupedLinear(
            config.hidden_size, config.padded_vocab_size, stored.output_bits, stored.group_size, bias=False
        )
    return Linear(config.hidden_size, config.padded_vocab_size, bias=False)


def make_embedding(config: ModelConfig) -> nn.Embedding | GroupedEmbedding:
    """The table from token ids to hidden states."""
    stored = config.quantization
    if stored and stored.embedding_bits < 16:
        return GroupedEmbedding(config.padded_vocab_size, config.hidden_size, stored.embedding_bits, stored.group_size)
    return nn.Embedding(config.padded_vocab_size, config.hidden_size)
