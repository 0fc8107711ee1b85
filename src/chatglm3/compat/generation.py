"""Batches of ids that are padded on the left: into rows for the engine, and back with what it made of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from chatglm3.engine.sequence import Generation
from chatglm3.errors import SamplingError

_PAD_ID = 0


def unpad(input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None) -> list[list[int]]:
    """The rows of `input_ids` [b, n] without their padding: what the mask hides, or the zeros in front without a mask.

    Raises `SamplingError` if padding is not on the left, or if positions do not count from 0 after it.
    """
    if input_ids.dim() != 2 or not input_ids.numel():
        raise SamplingError(f"input_ids must be rows of ids [b, n], not {list(input_ids.shape)}")
    if attention_mask is None:
        attention_mask = (input_ids != _PAD_ID).long().cummax(dim=1).values
    gaps = (attention_mask == 0).sum(dim=1, keepdim=True)
    columns = torch.arange(input_ids.shape[1], device=input_ids.device)
    if attention_mask.shape != input_ids.shape or not torch.equal(attention_mask != 0, columns >= gaps):
        raise SamplingError("attention_mask must have the shape of input_ids, and in each row its zeros first")
    if position_ids is not None and not torch.equal(position_ids, (columns - gaps).clamp(min=0)):
        raise SamplingError("position_ids must count from 0 after the padding; leave them out to have just that")
    return [row[int(gap) :] for row, gap in zip(input_ids.tolist(), gaps, strict=True)]


def join(input_ids: Tensor, generations: Sequence[Generation], pad_id: int) -> Tensor:
    """`input_ids` [b, n] with the new ids behind them, stop ids included, filled up with `pad_id`."""
    new = [[*g.token_ids, *([] if g.stop_id is None else [g.stop_id])] for g in generations]
    longest = max(map(len, new))
    filled = [ids + [pad_id] * (longest - len(ids)) for ids in new]
    return torch.cat((input_ids, torch.tensor(filled, dtype=torch.long, device=input_ids.device)), dim=1)
