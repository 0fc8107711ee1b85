"""The layout of weights quantised in groups: byte for byte, there and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chatglm3.kernels.layout import GroupedWeight, dequantize, dequantize_rows, pack, shapes, unpack

BITS = st.sampled_from((4, 8))
GROUP_SIZES = st.sampled_from((32, 64, 128))


def draw(out: int, inputs: int, bits: int, group_size: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Integers, scales and row scales over their whole range."""
    random = torch.Generator().manual_seed(seed)
    limit = 1 << (bits - 1)
    integers = torch.randint(-limit, limit, (out, inputs), dtype=torch.int8, generator=random)
    scales = torch.randint(-127, 128, (out, -(-inputs // group_size)), dtype=torch.int8, generator=random)
    return integers, scales, torch.rand(out, generator=random)


def code(weight: GroupedWeight, row: int, column: int) -> int:
    """The code of one weight, found as the format describes it."""
    group, within = divmod(column, weight.group_size)
    block, within = divmod(within, 32)
    data = weight.codes[row // 16, group].tolist()
    if weight.bits == 8:
        return int(data[block * 512 + within // 4 * 64 + 4 * (row % 16) + within % 4])
    high, within = divmod(within, 16)
    return int(data[block * 256 + within // 4 * 64 + 4 * (row % 16) + within % 4] >> 4 * high & 15)


@given(BITS, GROUP_SIZES, st.integers(1, 35), st.integers(1, 140))
def test_every_weight_is_where_the_format_says(bits: int, group_size: int, out: int, inputs: int) -> None:
    integers, scales, row_scale = draw(out, inputs, bits, group_size)
    weight = pack(integers, scales, row_scale, bits, group_size)
    assert (weight.codes.shape, weight.scales.shape, weight.row_scale.shape) == shapes(inputs, out, bits, group_size)
    assert weight.group_size == group_size
    zero = 1 << (bits - 1)
    for row, column in ((0, 0), (out - 1, inputs - 1), (out // 2, inputs // 3), (out // 3, inputs // 2)):
        assert code(weight, row, column) - zero == integers[row, column]
        assert weight.scales[row // 16, column // group_size, row % 16] == scales[row, column // group_size]


@given(BITS, GROUP_SIZES, st.integers(1, 50), st.integers(1, 300), st.integers(0, 1000))
def test_unpacking_gives_back_what_was_packed(bits: int, group_size: int, out: int, inputs: int, seed: int) -> None:
    parts = draw(out, inputs, bits, group_size, seed)
    assert all(map(torch.equal, unpack(pack(*parts, bits, group_size)), parts))


@given(BITS, GROUP_SIZES, st.integers(1, 50), st.integers(1, 300))
def test_the_padding_is_zero(bits: int, group_size: int, out: int, inputs: int) -> None:
    weight = pack(*draw(out, inputs, bits, group_size), bits, group_size)
    rows, columns = len(weight.row_scale), weight.codes.shape[1] * group_size
    integers, scales, row_scale = unpack(weight._replace(out_features=rows, in_features=columns))
    assert not integers[:, inputs:].any()
    assert not integers[out:].any() and not scales[out:].any() and not row_scale[out:].any()


@given(BITS, GROUP_SIZES, st.integers(1, 50), st.integers(1, 300))
def test_a_weight_is_integer_times_scale(bits: int, group_size: int, out: int, inputs: int) -> None:
    integers, scales, row_scale = draw(out, inputs, bits, group_size)
    weight = pack(integers, scales, row_scale, bits, group_size)
    scale = (scales * row_scale[:, None]).repeat_interleave(group_size, 1)[:, :inputs]
    assert torch.equal(dequantize(weight, torch.float32), integers * scale)
    assert torch.equal(dequantize(weight, torch.float16), (integers * scale).half())


@pytest.mark.parametrize("bits", [4, 8])
def test_rows_are_looked_up(bits: int) -> None:
    weight = pack(*draw(21, 45, bits, 32), bits, 32)
    rows = torch.tensor([[0, 20, 7], [16, 15, 7]])
    assert torch.equal(dequantize_rows(weight, rows, torch.float32), dequantize(weight, torch.float32)[rows])
    assert dequantize_rows(weight, rows[:0], torch.float16).shape == (0, 3, 45)
    for missing in (-1, 21, 31, 32):  # 31 is there as padding
        with pytest.raises(IndexError):
            dequantize_rows(weight, torch.tensor([missing]), torch.float32)
