"""Calling the model itself, as the official forward: batch-first ids and logits, position-first states and caches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

from torch import Tensor

from chatglm3.errors import ContextLengthError
from chatglm3.model.cache import ConcatCache
from chatglm3.model.loss import causal_lm_loss
from chatglm3.model.transformer import ChatGLMModel

Past: TypeAlias = Sequence[tuple[Tensor, Tensor]]
"""A (key, value) pair a layer, each [tokens, b, groups, width], after rotation and not repeated."""


class Output:
    """Fields by attribute, by name or by place; places and `to_tuple` leave out what is None, as officially."""

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None."""
        values = (getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]
        return tuple(value for value in values if value is not None)

    def __getitem__(self, key: int | slice | str) -> Any:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]


@dataclass(frozen=True, eq=False)
class CausalLMOutput(Output):
    """`loss` (with labels), `logits` [b, s, vocabulary], `past_key_values`, and `hidden_states` where asked for.

    `hidden_states` are the embeddings and each block's output [s, b, h], the last one before the final norm.
    """

    loss: Tensor | None
    logits: Tensor
    past_key_values: tuple[tuple[Tensor, Tensor], ...] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: None = None


def forward(
    network: ChatGLMModel,
    input_ids: Tensor,
    position_ids: Tensor | None,
    attention_mask: Tensor | None,
    past_key_values: Past | None,
    labels: Tensor | None,
    *,
    use_cache: bool,
    output_hidden_states: bool,
    return_last_logit: bool,
) -> CausalLMOutput:
    """One pass; see `ChatGLMForConditionalGeneration.__call__`."""
    cache = _cache(network, past_key_values, input_ids.shape[0])
    _check_positions(network, input_ids, position_ids, cache)
    collected: list[Tensor] = []
    hidden = network.encode(
        input_ids, position_ids, key_mask(attention_mask), cache, collected if output_hidden_states else None
    )
    logits = network.logits(hidden[:, -1:] if return_last_logit else hidden)
    return CausalLMOutput(
        None if labels is None else causal_lm_loss(logits, labels.to(logits.device)).to(hidden.dtype),
        logits,
        _as_past(cache) if use_cache else None,
        tuple(state.transpose(0, 1) for state in collected) if output_hidden_states else None,
    )


def key_mask(attention_mask: Tensor | None) -> Tensor | None:
    """The mask for the network: true where a token is visible, None where all are."""
    if attention_mask is None:
        return None
    visible = attention_mask.bool()
    return None if visible.all() else visible


def _cache(network: ChatGLMModel, past: Past | None, batch: int) -> ConcatCache:
    if past is None:
        return network.new_concat_cache(batch)
    prefix = network.prefix()
    layers = [(key.permute(1, 2, 0, 3), value.permute(1, 2, 0, 3)) for key, value in past]
    return ConcatCache(layers, prefix_length=0 if prefix is None else prefix.shape[2])


def _as_past(cache: ConcatCache) -> tuple[tuple[Tensor, Tensor], ...]:
    return tuple((key.permute(2, 0, 1, 3), value.permute(2, 0, 1, 3)) for key, value in cache.layers)


def _check_positions(network: ChatGLMModel, input_ids: Tensor, position_ids: Tensor | None, cache: ConcatCache) -> None:
    last = cache.length - cache.prefix_length + input_ids.shape[1] - 1
    if position_ids is not None:
        last = int(position_ids.max())
    if last >= network.config.seq_length:
        raise ContextLengthError(
            f"position {last} is beyond the context of {network.config.seq_length} tokens; shorten the input"
        )
