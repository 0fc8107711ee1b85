"""Comparing logits with the reference values, which are stored as some columns and a summary of all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

TOLERANCE = {torch.float32: 2e-4, torch.float16: 0.1, torch.bfloat16: 0.5}


def inputs_of(case: Mapping[str, Any]) -> dict[str, Tensor | None]:
    """The arguments of `ChatGLMModel.forward` for a case of a JSON file."""
    mask, positions = case.get("attention_mask"), case.get("position_ids")
    return {
        "input_ids": torch.tensor(case["input_ids"]),
        "positions": None if positions is None else torch.tensor(positions),
        "key_mask": None if mask is None else torch.tensor(mask, dtype=torch.bool),
    }


def assert_logits(
    logits: Tensor, tensors: Mapping[str, Tensor], name: str, key_mask: Tensor | None = None, tolerance: float = 2e-4
) -> None:
    """`logits` [b, s, vocabulary] agree with the tensors called `name`.*, at tokens that are not masked."""
    seen = torch.ones(logits.shape[:2], dtype=torch.bool)
    if key_mask is not None:
        seen = key_mask[:, -logits.shape[1] :]
    wanted = tensors[f"{name}.logits_columns"]
    columns = tensors["columns"][: wanted.shape[-1]]
    close(logits[..., columns][seen], wanted[seen], tolerance)
    close(logits.float().logsumexp(-1)[seen], tensors[f"{name}.logsumexp"][seen], tolerance)
    if f"{name}.top10_values" in tensors:
        close(logits.float().topk(10).values[seen], tensors[f"{name}.top10_values"][seen], tolerance)
        at_ids = logits.float().gather(-1, tensors[f"{name}.top10_ids"])
        close(at_ids[seen], tensors[f"{name}.top10_values"][seen], tolerance)
    if f"{name}.logits_last" in tensors:
        close(logits[:, -1], tensors[f"{name}.logits_last"], tolerance)
    if f"{name}.logits" in tensors:
        close(logits, tensors[f"{name}.logits"], tolerance)


def close(found: Tensor, wanted: Tensor, tolerance: float) -> None:
    """Every number within `tolerance`; in 16 bits the mean within an eighth of it."""
    difference = (found.detach().float() - wanted.float()).abs()
    assert difference.max() <= tolerance
    assert difference.mean() <= tolerance / 8
