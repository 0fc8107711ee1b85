"""The layout of a weight quantised in groups: integers in tiles of 16 rows, as the kernels read them.

A weight [out, in] is `integer * scales * row_scale`: an integer of 4 or 8 bits for each weight, a signed 8-bit scale
for each group of 32, 64 or 128 inputs of a row, and a float32 scale for each row. Integers are stored unsigned, as the
code `integer + zero` with zero 8 or 128. Inputs are padded to whole groups with integers 0, rows to whole tiles with
integers, scales and row scales 0.

The bytes of a group are blocks of 32 inputs for 16 rows. At 8 bits a block is 8 chunks of 64 bytes: byte 4 r + i of
chunk c is row r, input 4 c + i. At 4 bits it is 4 chunks: byte 4 r + i of chunk c holds row r, input 4 c + i in its low
nibble and input 16 + 4 c + i in its high one.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TILE = 16
"""Rows of a tile."""
_BLOCK = 32


class GroupedWeight(NamedTuple):
    """A packed weight [out, in] of `bits` 4 or 8.

    `codes` is uint8 [tiles, groups, 16 * group_size * bits / 8], `scales` int8 [tiles, groups, 16] and `row_scale`
    float32 [tiles * 16].
    """

    codes: Tensor
    scales: Tensor
    row_scale: Tensor
    bits: int
    in_features: int
    out_features: int

    @property
    def group_size(self) -> int:
        """Inputs that share a scale."""
        return self.codes.shape[2] * 8 // (TILE * self.bits)

    def placed(self, row: int) -> tuple[tuple[int, Tensor], ...]:
        """The three tensors, each with where it begins in that of a larger weight whose rows from `row` on these are.

        `row` is a multiple of 16.
        """
        tile = row // TILE
        return (tile, self.codes), (tile, self.scales), (row, self.row_scale)


class Shapes(NamedTuple):
    """The shapes of the three tensors of a packed weight."""

    codes: tuple[int, int, int]
    scales: tuple[int, int, int]
    row_scale: tuple[int]


def shapes(in_features: int, out_features: int, bits: int, group_size: int) -> Shapes:
    """What a weight [out, in] packs to."""
    tiles, groups = -(-out_features // TILE), -(-in_features // group_size)
    return Shapes((tiles, groups, TILE * group_size * bits // 8), (tiles, groups, TILE), (tiles * TILE,))


def pack(integers: Tensor, scales: Tensor, row_scale: Tensor, bits: int, group_size: int) -> GroupedWeight:
    """Pack `integers` int8 [out, in], `scales` int8 [out, groups] and `row_scale` float32 [out].

    Integers are in [-8, 7] or [-128, 127].
    """
    out_features, in_features = integers.shape
    (tiles, groups, _), _, (rows,) = shapes(in_features, out_features, bits, group_size)
    padded = F.pad(integers, (0, groups * group_size - in_features, 0, rows - out_features))
    blocks = (tiles, TILE, groups, group_size // _BLOCK)
    if bits == 8:
        codes = padded.view(*blocks, 8, 4).permute(0, 2, 3, 4, 1, 5).contiguous().view(torch.uint8) ^ 128
    else:
        low, high = padded.view(*blocks, 2, 4, 4).permute(4, 0, 2, 3, 5, 1, 6)
        codes = ((low & 15) | (high << 4)).view(torch.uint8) ^ 0x88
    tiled_scales = F.pad(scales, (0, 0, 0, rows - out_features)).view(tiles, TILE, groups).transpose(1, 2)
    padded_row_scale = F.pad(row_scale, (0, rows - out_features))
    return GroupedWeight(
        codes.reshape(tiles, groups, -1), tiled_scales.contiguous(), padded_row_scale, bits, in_features, out_features
    )


def unpack(weight: GroupedWeight) -> tuple[Tensor, Tensor, Tensor]:
    """`integers` int8 [out, in], `scales` int8 [out, groups] and `row_scale` float32 [out], as `pack` takes them."""
    blocks = _blocks(weight).permute(0, 4, 1, 2, 3, 5)
    integers = _integers(blocks, weight.bits).flatten(2).flatten(0, 1)
    scales = weight.scales.transpose(1, 2).flatten(0, 1)
    rows = slice(weight.out_features)
    return integers[rows, : weight.in_features], scales[rows], weight.row_scale[rows]


def dequantize(weight: GroupedWeight, dtype: torch.dtype) -> Tensor:
    """The weight [out, in], computed in float32 and rounded to `dtype` once."""
    integers, scales, row_scale = unpack(weight)
    return _multiply(integers, scales, row_scale, weight.group_size, dtype)


def dequantize_rows(weight: GroupedWeight, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows of a weight [out, in] that `rows` [...] names, as [..., in]; IndexError for a row that is not there."""
    if rows.device.type == "cpu" and ((rows < 0) | (rows >= weight.out_features)).any():
        raise IndexError(f"row out of range: the weight has {weight.out_features} rows")
    flat = rows.flatten()
    tile, row = flat // TILE, flat % TILE
    integers = _integers(_blocks(weight)[tile, :, :, :, row], weight.bits).flatten(1)[:, : weight.in_features]
    values = _multiply(integers, weight.scales[tile, :, row], weight.row_scale[flat], weight.group_size, dtype)
    return values.view(*rows.shape, weight.in_features)


def _blocks(weight: GroupedWeight) -> Tensor:
    """The codes as [tiles, groups, blocks, chunks, 16, 4]."""
    tiles, groups, _ = weight.codes.shape
    return weight.codes.view(tiles, groups, weight.group_size // _BLOCK, weight.bits, TILE, 4)


def _integers(codes: Tensor, bits: int) -> Tensor:
    """Codes uint8 [..., chunks, 4] as integers int8 [..., inputs of a block]."""
    if bits == 8:
        return (codes ^ 128).view(torch.int8).flatten(-2)
    high = (codes ^ 0x88).view(torch.int8)
    return torch.stack(((high << 4) >> 4, high >> 4), dim=-3).flatten(-3)


def _multiply(integers: Tensor, scales: Tensor, row_scale: Tensor, group_size: int, dtype: torch.dtype) -> Tensor:
    groups = scales.shape[1]
    missing = groups * group_size - integers.shape[1]
    scale = scales * row_scale[:, None]
    wide = F.pad(integers, (0, missing)).float().view(-1, groups, group_size)
    return wide.mul_(scale[:, :, None]).flatten(1)[:, : integers.shape[1]].to(dtype)
