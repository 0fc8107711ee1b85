"""Quantisation in groups: the scales and integers that come nearest to a weight, by squared error.

For each group a few scales around its largest value / 8 (at 8 bits: / 128) are tried, each refitted by least squares:
with integers q the best scale is sum(w q) / sum(q q). The scales of a row are then stored as multiples of one number,
and the multiples next to the best scale are compared as they will be stored.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from chatglm3.errors import CheckpointError
from chatglm3.kernels.layout import GroupedWeight, pack

_LARGEST_SCALE = 127
_SLICE = 1 << 18  # weights at a time: what one step writes is still in the cache for the next
_WORKERS = 4  # more would wait for the interpreter
_TINY = 1e-30  # a group whose values are smaller than this share of its row's largest is stored as zeros
_CANDIDATES = {4: (6.0, 6.5, 7.0, 7.5, 8.0, 8.5, 9.0), 8: (120.0, 124.0, 128.0)}


class Grouping(NamedTuple):
    """A quantised weight, its squared error, and the sum of the squares of the weight that it stands for."""

    weight: GroupedWeight
    squared_error: float
    squared_sum: float


class _Rows(NamedTuple):
    integers: Tensor  # [rows, inputs]
    scales: Tensor  # [rows, groups]
    row_scale: Tensor  # [rows]
    squared_error: Tensor  # [rows], float64
    squared_sum: Tensor  # [rows], float64


def group_rows(weight: Tensor, bits: int, group_size: int, name: str = "the weight") -> GroupedWeight:
    """Quantise `weight` [out, in], on the device where it is.

    `bits` is 4 or 8. A group of zeros stays zero; a row of denormal numbers loses precision or becomes zero. Raises
    `CheckpointError`, which says `name`, for values that are not finite.
    """
    return group_and_measure(weight, bits, group_size, name).weight


def group_and_measure(weight: Tensor, bits: int, group_size: int, name: str) -> Grouping:
    """What `group_rows` gives, with its error."""
    out_features, in_features = weight.shape
    step = max(1, _SLICE // in_features)
    threads = torch.get_num_threads()
    try:
        # One thread for each slice: torch's own threads would meet after every small step, and wait for the slowest.
        with ThreadPoolExecutor(min(threads, _WORKERS), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            parts = pool.map(
                lambda start: _search(weight[start : start + step], bits, group_size), range(0, out_features, step)
            )
            found = _Rows(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
    finally:
        torch.set_num_threads(threads)  # the workers have changed what later threads begin with
    if not torch.isfinite(found.row_scale).all():
        raise CheckpointError(f"{name} holds NaN or infinite values; download the file again")
    packed = pack(found.integers[:, :in_features], found.scales, found.row_scale, bits, group_size)
    return Grouping(packed, float(found.squared_error.sum()), float(found.squared_sum.sum()))


@torch.no_grad()
def _search(rows: Tensor, bits: int, group_size: int) -> _Rows:
    """Quantise `rows` [rows, in], padded with zeros to whole groups."""
    weight = F.pad(rows.float(), (0, -rows.shape[1] % group_size)).unflatten(1, (-1, group_size))  # type: ignore[no-untyped-call]
    largest = weight.abs().amax((1, 2), keepdim=True)
    weight = weight / torch.where(largest > 0, largest, 1)  # within [-1, 1]: squares neither overflow nor vanish
    high, low = weight.amax(2, keepdim=True), weight.amin(2, keepdim=True)
    extreme = torch.where(high > -low, high, low)
    extreme = torch.where(extreme.abs() > _TINY, extreme, 0)
    best = _best_scale(weight, extreme, bits)
    unit = best.abs().amax((1, 2), keepdim=True) / _LARGEST_SCALE
    middle = (best * _inverse(unit)).round_()
    plain = (extreme * _inverse(unit) / -(1 << (bits - 1))).round_()
    integers, scales, error = _nearest(weight, unit, (middle, middle - 1, middle + 1, plain), bits)
    squares = torch.stack((error.sum((1, 2)), weight.square().sum((1, 2)))).double() * largest.flatten().double() ** 2
    return _Rows(
        integers.flatten(1).to(torch.int8), scales.flatten(1).to(torch.int8), (unit * largest).flatten(), *squares
    )


def _best_scale(weight: Tensor, extreme: Tensor, bits: int) -> Tensor:
    """The scale [rows, groups, 1] with the smallest squared error, among the candidates refitted by least squares.

    With the best scale for integers q the error is sum(w w) - sum(w q) ** 2 / sum(q q).
    """
    best, gain = torch.zeros_like(extreme), torch.zeros_like(extreme)
    inverse = -_inverse(extreme)
    for candidate in _CANDIDATES[bits]:
        q = _round(weight, inverse * candidate, bits)
        product = (weight * q).sum(2, keepdim=True)
        fitted = product / (q * q).sum(2, keepdim=True).clamp_(min=1)
        better = product * fitted > gain
        best, gain = torch.where(better, fitted, best), torch.where(better, product * fitted, gain)
    return best


def _nearest(weight: Tensor, unit: Tensor, candidates: tuple[Tensor, ...], bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Integers, the one of the scales `candidates` (multiples of `unit`) with the smallest squared error, and that."""
    scales, least = torch.zeros_like(candidates[0]), torch.full_like(candidates[0], torch.inf)
    for candidate in candidates:
        candidate.clamp_(-_LARGEST_SCALE, _LARGEST_SCALE)
        scale = candidate * unit
        error = _round(weight, _inverse(scale), bits).mul_(scale).sub_(weight).square_().sum(2, keepdim=True)
        better = error < least
        scales, least = torch.where(better, candidate, scales), torch.where(better, error, least)
    return _round(weight, _inverse(scales * unit), bits), scales, least


def _round(weight: Tensor, inverse_scale: Tensor, bits: int) -> Tensor:
    limit = 1 << (bits - 1)
    return (weight * inverse_scale).round_().clamp_(-limit, limit - 1)


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale != 0, 1 / scale, 0)
