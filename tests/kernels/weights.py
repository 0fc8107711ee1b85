"""Packed weights of any content, and the products that they stand for, in double precision."""

from __future__ import annotations

import torch
from torch import Tensor

from chatglm3.kernels.layout import GroupedWeight, dequantize, pack


def random_weight(generator: torch.Generator, out: int, width: int, bits: int, group_size: int) -> GroupedWeight:
    """Integers and scales over their whole range, both ends and zeros among them."""
    low, high = (-8, 8) if bits == 4 else (-128, 128)
    integers = torch.randint(low, high, (out, width), generator=generator, dtype=torch.int8)
    scales = torch.randint(-127, 128, (out, -(-width // group_size)), generator=generator, dtype=torch.int8)
    row_scale = torch.rand(out, generator=generator) * 1e-3
    integers[0, :] = low
    scales[:, 0] = 127
    scales[-1, -1] = 0
    return pack(integers, scales, row_scale, bits, group_size)


def quantized_activations(x: Tensor, group_size: int) -> Tensor:
    """`x` [n, in] rounded as the kernels do: int8 with one scale, largest / 127, for each group of a row."""
    n, width = x.shape
    padded = torch.nn.functional.pad(x, (0, -width % group_size)).view(n, -1, group_size)
    largest = padded.abs().amax(-1, keepdim=True)
    to_code = torch.where(largest > 1e-30, 127 / largest, 0.0)
    rounded = (padded * to_code).round().double() * (largest.double() / 127)
    return rounded.view(n, -1)[:, :width]


def reference(x: Tensor, weight: GroupedWeight, bias: Tensor | None) -> Tensor:
    """The product of quantised activations with the weight, in double precision."""
    product = quantized_activations(x, weight.group_size).double() @ dequantize(weight, torch.float64).T
    return product if bias is None else product + bias
