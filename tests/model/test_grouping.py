"""The choice of scales and integers: its error, and weights that are unusual."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chatglm3.errors import CheckpointError
from chatglm3.kernels.layout import dequantize, unpack
from chatglm3.model.grouping import group_and_measure, group_rows

BITS = st.sampled_from((4, 8))
GROUP_SIZES = st.sampled_from((32, 64, 128))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(weight: Tensor, found: Tensor) -> float:
    return float((found.double() - weight).norm() / weight.double().norm())


def q4_0(weight: Tensor) -> Tensor:
    """The plain method: groups of 32, a float16 scale of the largest value / -8, rounded half up."""
    groups = weight.reshape(-1, 32)
    largest = groups.gather(1, groups.abs().argmax(1, keepdim=True))
    scale = largest / -8
    codes = (groups / scale + 8.5).floor().clamp(0, 15)
    return ((codes - 8) * scale.half().float()).view_as(weight)


def by_the_maximum(weight: Tensor, bits: int, group_size: int) -> Tensor:
    """Scales of the largest value alone, stored as multiples of a row's largest / 127."""
    limit = 1 << (bits - 1)
    groups = weight.view(len(weight), -1, group_size)
    scale = groups.gather(2, groups.abs().argmax(2, keepdim=True)) / -limit
    unit = scale.abs().amax(1, keepdim=True) / 127
    scale = (scale / unit).round() * unit
    integers = (groups / scale).nan_to_num(0, 0, 0).round().clamp(-limit, limit - 1)
    return (integers * scale).view_as(weight)


def test_four_bits_are_nearer_than_the_usual_format() -> None:
    weight = normal(256, 1024)
    found = relative_error(weight, dequantize(group_rows(weight, 4, 32), torch.float32))
    assert found < 0.0812
    assert found / relative_error(weight, q4_0(weight)) < 0.945


@pytest.mark.parametrize(("group_size", "largest"), [(32, 0.0052), (64, 0.0058), (128, 0.0064)])
def test_eight_bits_lose_about_half_a_percent(group_size: int, largest: float) -> None:
    weight = normal(256, 1024)
    assert relative_error(weight, dequantize(group_rows(weight, 8, group_size), torch.float32)) < largest


@given(BITS, GROUP_SIZES, st.integers(1, 20), st.integers(1, 6), st.integers(0, 10**6), st.floats(0, 2))
def test_the_error_is_never_above_that_of_the_maximum(
    bits: int, group_size: int, out: int, groups: int, seed: int, spread: float
) -> None:
    """`spread` makes some groups much larger than others, and their tails heavier."""
    weight = (
        normal(out, groups * group_size, seed=seed)
        * (spread * normal(out, groups, seed=seed + 1).repeat_interleave(group_size, 1)).exp()
    )
    found = dequantize(group_rows(weight, bits, group_size), torch.float32)
    assert relative_error(weight, found) <= relative_error(weight, by_the_maximum(weight, bits, group_size))


@given(BITS, GROUP_SIZES, st.integers(1, 40), st.integers(1, 300), st.integers(0, 10**6))
def test_any_shape_is_quantised_and_its_error_is_told(
    bits: int, group_size: int, out: int, inputs: int, seed: int
) -> None:
    weight = normal(out, inputs, seed=seed)
    grouped, error, total = group_and_measure(weight, bits, group_size, "w")
    found = dequantize(grouped, torch.float32)
    assert found.shape == weight.shape
    assert (found - weight).abs().max() < weight.abs().max() * (0.2 if bits == 4 else 0.02)
    assert math.isclose(error, float((found.double() - weight).square().sum()), rel_tol=1e-3, abs_tol=1e-9 * total)
    assert math.isclose(total, float(weight.double().square().sum()), rel_tol=1e-5)


@given(BITS, st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=70))
def test_any_finite_values_become_finite_ones(bits: int, values: list[float]) -> None:
    weight = torch.tensor([values])
    grouped = group_rows(weight, bits, 32)
    found = dequantize(grouped, torch.float64)
    assert torch.isfinite(found).all() and torch.isfinite(grouped.row_scale).all()
    assert int(grouped.scales.min()) >= -127
    bound = 0.08 if bits == 4 else 0.008
    assert (found - weight).abs().max() <= weight.abs().max().double() * bound + 1e-42


@pytest.mark.parametrize("bits", [4, 8])
def test_groups_and_rows_of_zeros_stay_zero(bits: int) -> None:
    weight = normal(3, 96)
    weight[0, 32:64] = 0
    weight[1] = 0
    weight[2, :32] *= 1e-38  # nothing beside the rest of its row
    found = dequantize(group_rows(weight, bits, 32), torch.float32)
    assert not found[0, 32:64].any() and not found[1].any() and not found[2, :32].any()
    assert found[0, :32].any() and found[2, 32:].any()


@pytest.mark.parametrize("size", [1e-42, 1e-38, 1e-30, 1e30, 3e38])
@pytest.mark.parametrize("bits", [4, 8])
def test_rows_of_any_size_are_quantised_alike(size: float, bits: int) -> None:
    weight = normal(4, 128).clamp(-1, 1)
    found = dequantize(group_rows(weight * size, bits, 32), torch.float64) / size
    if size < 1e-40:  # denormal numbers have few digits, and their scales fewer: such a row may become zero
        assert relative_error(weight, found) <= 1
    else:
        assert relative_error(weight, found) < (0.1 if bits == 4 else 0.01)


@pytest.mark.parametrize("bits", [4, 8])
def test_integers_of_these_scales_are_found_again(bits: int) -> None:
    limit = 1 << (bits - 1)
    integers = torch.randint(-limit, limit, (5, 64), generator=torch.Generator().manual_seed(0))
    integers[:, ::32] = -limit  # the range is used
    again, _, _ = unpack(group_rows(integers * 0.25, bits, 32))
    assert torch.equal(again.long(), integers)


def test_half_precision_is_quantised_as_it_is() -> None:
    weight = normal(20, 64).half()
    half, full = (unpack(group_rows(w, 4, 32)) for w in (weight, weight.float()))
    assert all(map(torch.equal, half, full))


def test_the_slices_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal(40, 96)
    whole = unpack(group_rows(weight, 4, 32))
    monkeypatch.setattr("chatglm3.model.grouping._SLICE", 100)
    assert all(map(torch.equal, unpack(group_rows(weight, 4, 32)), whole))


def test_the_number_of_threads_is_as_before() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        group_rows(normal(20, 64), 4, 32)
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(torch.get_num_threads).result() == torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(wrong: float) -> None:
    for bits, column in ((4, 0), (8, 63)):
        weight = normal(3, 64)
        weight[1, column] = wrong
        with pytest.raises(CheckpointError, match="a layer holds NaN or infinite values"):
            group_rows(weight, bits, 32, "a layer")
