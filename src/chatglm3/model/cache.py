"""Keys and values of past tokens.

Both caches answer `append(layer, key, value)` with everything seen so far, `[b, groups, t, d]`, and count their tokens
in `length`. `KVCache` is preallocated and written in place, for generation; `ConcatCache` only concatenates, so
gradients flow through it and earlier states stay valid, for training and for callers of the bare network.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from chatglm3.model.config import ModelConfig


class Cache(Protocol):
    """What attention needs of a cache. `prefix_length` tokens at its start have no position (P-Tuning v2)."""

    length: int
    prefix_length: int

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add `[b, s, groups, d]` after `length` tokens; returns all keys and values `[b, groups, length + s, d]`."""

    def advance(self, tokens: int) -> None:
        """Count `tokens` more, once every layer has appended them."""


class KVCache:
    """A preallocated cache for `batch` rows of equal length, at most `capacity` tokens each.

    One `[batch, groups, capacity, d]` pair a layer, on that layer's device. Rows of different lengths have one each.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int,
        capacity: int,
        dtype: torch.dtype,
        devices: Sequence[torch.device],
        prefix: Tensor | None = None,
    ) -> None:
        """`prefix` [layers, 2, P, groups, d] is put before every row and takes no positions."""
        self.prefix_length = 0 if prefix is None else prefix.shape[2]
        self.capacity = capacity
        shape = (2, batch, config.multi_query_group_num, capacity + self.prefix_length, config.kv_channels)
        self._layers = [torch.empty(shape, dtype=dtype, device=device) for device in devices]
        self.length = 0
        if prefix is not None:
            for layer, (key, value) in enumerate(prefix):
                self.append(layer, key.expand(batch, -1, -1, -1), value.expand(batch, -1, -1, -1))
            self.length = self.prefix_length

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Write `[b, s, groups, d]` behind the tokens held; returns views of all of them `[b, groups, t, d]`."""
        end = self.length + key.shape[1]
        keys, values = self._layers[layer][:, :, :, :end].unbind(0)
        keys[:, :, self.length :].copy_(key.transpose(1, 2))
        values[:, :, self.length :].copy_(value.transpose(1, 2))
        return keys, values

    def advance(self, tokens: int) -> None:
        """Count `tokens` more, once every layer has appended them."""
        self.length += tokens

    @property
    def tokens(self) -> int:
        """Tokens held that have a position."""
        return self.length - self.prefix_length

    def truncate(self, tokens: int) -> None:
        """Forget every token after the first `tokens`."""
        self.length = self.prefix_length + min(tokens, self.tokens)

    def copy_from(self, other: KVCache, tokens: int) -> None:
        """Take the first `tokens` of `other`, whose one row goes to every row here."""
        self.length = self.prefix_length + tokens
        for mine, theirs in zip(self._layers, other._layers, strict=True):
            mine[:, :, :, : self.length].copy_(theirs[:, :, :, : self.length])

    def state(self) -> list[Tensor]:
        """Of each layer, the keys and values held: views `[2, batch, groups, length, d]`."""
        return [layer[:, :, :, : self.length] for layer in self._layers]

    def restore(self, state: Sequence[Tensor]) -> None:
        """Take what `state` of a cache of the same model returned."""
        self.length = state[0].shape[3]
        for mine, saved in zip(self.state(), state, strict=True):
            mine.copy_(saved)

    def reorder(self, rows: Tensor) -> None:
        """Row `i` becomes what row `rows[i]` was (beam search)."""
        for layer in self._layers:
            used = layer[:, :, :, : self.length]
            used.copy_(used.index_select(1, rows.to(layer.device)))

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(layer.nbytes for layer in self._layers)


class ConcatCache:
    """A cache that grows by concatenation and never writes to what it was given."""

    def __init__(self, past: Sequence[tuple[Tensor, Tensor]] = (), prefix_length: int = 0) -> None:
        """`past` holds one (key, value) pair a layer, `[b, groups, t, d]`; empty to start with nothing."""
        self.layers = list(past)
        self.length = self.layers[0][0].shape[2] if self.layers else 0
        self.prefix_length = prefix_length

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Concatenate `[b, s, groups, d]`; returns all keys and values `[b, groups, t, d]`."""
        key, value = key.transpose(1, 2), value.transpose(1, 2)
        if layer == len(self.layers):
            self.layers.append((key, value))
        else:
            past_key, past_value = self.layers[layer]
            self.layers[layer] = (torch.cat((past_key, key), dim=2), torch.cat((past_value, value), dim=2))
        return self.layers[layer]

    def advance(self, tokens: int) -> None:
        """Count `tokens` more, once every layer has appended them."""
        self.length += tokens
