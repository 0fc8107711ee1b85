"""What attention allocates, as torch's profiler counts it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from chatglm3.kernels.ops import attend

HEADS, GROUPS, WIDTH = 32, 2, 16
FLOAT = 4


def tensors(new: int, total: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(1, new, HEADS, WIDTH), torch.randn(1, GROUPS, total, WIDTH), torch.randn(1, GROUPS, total, WIDTH)


def allocations(function: Callable[[], object]) -> list[int]:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    return [event.self_cpu_memory_usage for event in profiler.events() if event.self_cpu_memory_usage > 0]


def test_a_decode_step_copies_no_keys() -> None:
    """Sixteen query heads share a key/value head; repeating it for each would allocate sixteen times its size."""
    q, k, v = tensors(1, 4096)
    sizes = allocations(lambda: attend(q, k, v))
    assert sum(sizes) >= q.nbytes  # the result at least: the count works
    assert sum(sizes) < k.nbytes / 4


def test_a_long_prompt_builds_no_square_mask() -> None:
    q, k, v = tensors(2048, 2048)
    assert sum(allocations(lambda: attend(q, k, v))) < 2048 * 2048 * FLOAT / 2


def test_a_chunk_after_a_long_prompt_masks_a_block_at_a_time() -> None:
    q, k, v = tensors(1024, 4096)
    assert max(allocations(lambda: attend(q, k, v))) <= max(256 * 4096 * FLOAT, q.nbytes)
