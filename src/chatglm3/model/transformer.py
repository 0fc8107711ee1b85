"""The network: tokens to hidden states to logits, in plain PyTorch, batch first.

Module names are the official ones, so checkpoints and LoRA adapters need no renaming. Token ids are `[b, s]`, hidden
states `[b, s, h]`, logits `[b, s, vocabulary]`. Several sequences with a cache of their own run in one call laid end to
end along `s` (b = 1): the products see all tokens at once, attention sees each sequence alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from chatglm3.kernels.ops import add, apply_rope, attend, rms_norm, rope_table, swiglu
from chatglm3.model.cache import Cache, ConcatCache
from chatglm3.model.config import ModelConfig
from chatglm3.model.linear import make_embedding, make_linear, make_output_layer
from chatglm3.model.prefix_encoder import PrefixEncoder

Segments = Sequence[tuple[Cache, int]]
"""Caches and how many of the tokens along `s` belong to each, in order."""


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (Zhang and Sennrich, 2019)."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., h], normalised."""
        return rms_norm(x, self.weight, self.eps)


class RotaryEmbedding(nn.Module):
    """The rotary table (Su et al., 2021), built once for each dtype and device."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        dim = config.rotary_dim
        # The official files carry this buffer; its values are never used.
        self.register_buffer("inv_freq", 1.0 / (10000 ** (torch.arange(0, dim, 2) / dim)))
        self._shape = (config.seq_length, dim, 10000.0 * config.rope_ratio)
        self._tables: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def forward(self, positions: Tensor, dtype: torch.dtype) -> Tensor:
        """Rows of the table `[b, s, pairs, 2]` for `positions` [b, s]; IndexError beyond `seq_length`."""
        key = (dtype, positions.device)
        if key not in self._tables:
            self._tables[key] = rope_table(*self._shape, *key)
        return self._tables[key][positions]


class SelfAttention(nn.Module):
    """Attention with few key/value heads; one fused projection holds all queries, then keys, then values."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.index = index
        self.heads, self.groups, self.width = (
            config.num_attention_heads,
            config.multi_query_group_num,
            config.kv_channels,
        )
        self.query_key_value = make_linear(config, config.hidden_size, config.qkv_size, bias=config.add_qkv_bias)
        self.dense = make_linear(config, self.heads * self.width, config.hidden_size)

    def forward(self, x: Tensor, rope: Tensor, segments: Segments, key_mask: Tensor | None) -> Tensor:
        """`x` [b, s, h]; see `ChatGLMModel.hidden` for the rest."""
        qkv = self.query_key_value(x).unflatten(-1, (-1, self.width))
        q, k, v = qkv.split((self.heads, self.groups, self.groups), dim=2)
        q, k = apply_rope(q, rope), apply_rope(k, rope)
        outputs, start = [], 0
        for cache, length in segments:
            part = slice(start, start + length)
            keys, values = cache.append(self.index, k[:, part], v[:, part])
            outputs.append(attend(q[:, part], keys, values, key_mask))
            start += length
        out: Tensor = self.dense(outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1))
        return out


class MLP(nn.Module):
    """SwiGLU (Shazeer, 2020): gate and value in one fused projection, gate first."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.dense_h_to_4h = make_linear(config, config.hidden_size, 2 * config.ffn_hidden_size)
        self.dense_4h_to_h = make_linear(config, config.ffn_hidden_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """`x` [b, s, h]."""
        out: Tensor = self.dense_4h_to_h(swiglu(self.dense_h_to_4h(x)))
        return out


class Block(nn.Module):
    """Pre-norm attention and MLP, each added to the un-normalised stream."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.layernorm_epsilon)
        self.self_attention = SelfAttention(config, index)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.layernorm_epsilon)
        self.mlp = MLP(config)

    @property
    def device(self) -> torch.device:
        """Where this block's weights are."""
        return self.input_layernorm.weight.device

    def forward(self, x: Tensor, rope: Tensor, segments: Segments, key_mask: Tensor | None) -> Tensor:
        """`x` [b, s, h] through the block."""
        x = add(x, self.self_attention(self.input_layernorm(x), rope, segments, key_mask))
        return add(x, self.mlp(self.post_attention_layernorm(x)))


class _Embedding(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.word_embeddings = make_embedding(config)


class _Encoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(config, i) for i in range(config.num_layers))
        self.final_layernorm = RMSNorm(config.hidden_size, config.layernorm_epsilon)


class _Transformer(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embedding = _Embedding(config)
        self.rotary_pos_emb = RotaryEmbedding(config)
        self.encoder = _Encoder(config)
        self.output_layer = make_output_layer(config)
        if config.pre_seq_len is not None:
            self.prefix_encoder = PrefixEncoder(config, config.pre_seq_len)


@dataclass(frozen=True)
class ModelOutput:
    """What a forward pass computed.

    `logits` [b, s, vocabulary]; `last_hidden_state` [b, s, h] after the final norm; `hidden_states` the embeddings and
    each block's output, the last one **before** the final norm (as officially), empty unless asked for.
    """

    logits: Tensor
    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] = ()


class ChatGLMModel(nn.Module):
    """A ChatGLM3 network with its output layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.transformer = _Transformer(config)
        self.recompute = False
        """Keep only the input of each block for the backward pass, and compute the block again there.

        The caches must then give the same when they are appended to twice.
        """

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the activations."""
        return self.transformer.encoder.final_layernorm.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where token ids enter."""
        return self.transformer.embedding.word_embeddings.weight.device

    @property
    def blocks(self) -> list[Block]:
        """The layers in order."""
        return [layer for layer in self.transformer.encoder.layers if isinstance(layer, Block)]

    def prefix(self) -> Tensor | None:
        """Keys and values `[layers, 2, P, groups, d]` of a P-Tuning v2 prefix, or None."""
        encoder = getattr(self.transformer, "prefix_encoder", None)
        return None if encoder is None else encoder()

    def hidden(
        self,
        input_ids: Tensor,
        positions: Tensor,
        segments: Segments,
        key_mask: Tensor | None = None,
        collect: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states `[b, s, h]` after the final norm, for `input_ids` and `positions` [b, s].

        `segments` names the caches that the tokens join; they are advanced. `key_mask` [b, t] (one segment only) is
        false for keys that nobody may see; `collect` receives the embeddings and every block's output.
        """
        transformer = self.transformer
        x = transformer.embedding.word_embeddings(input_ids).to(self.dtype)
        rope = transformer.rotary_pos_emb(positions, self.dtype)
        for block in self.blocks:
            if collect is not None:
                collect.append(x)
            if x.device != block.device:
                x, rope = x.to(block.device), rope.to(block.device)
                key_mask = None if key_mask is None else key_mask.to(block.device)
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, rope, segments, key_mask, use_reentrant=False)
            else:
                x = block(x, rope, segments, key_mask)
        if collect is not None:
            collect.append(x)
        for cache, length in segments:
            cache.advance(length)
        norm = transformer.encoder.final_layernorm
        normed: Tensor = norm(x.to(norm.weight.device))
        return normed

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores `[..., vocabulary]` of the next token for hidden states `[..., h]`."""
        scores: Tensor = self.transformer.output_layer(hidden)
        return scores

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        key_mask: Tensor | None = None,
        cache: Cache | None = None,
        output_hidden_states: bool = False,
    ) -> ModelOutput:
        """Logits at every position of `input_ids` [b, s].

        Without `positions` they count on from the cache. `key_mask` [b, past + s] is false where a token is padding.
        """
        collected: list[Tensor] = []
        hidden = self.encode(input_ids, positions, key_mask, cache, collected if output_hidden_states else None)
        return ModelOutput(self.logits(hidden), hidden, tuple(collected))

    def encode(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        key_mask: Tensor | None = None,
        cache: Cache | None = None,
        collect: list[Tensor] | None = None,
    ) -> Tensor:
        """Hidden states `[b, s, h]` after the final norm; the arguments are those of `forward` and `hidden`."""
        if cache is None:
            cache = self.new_concat_cache(input_ids.shape[0])
        if key_mask is not None and cache.prefix_length:
            ones = key_mask.new_ones(key_mask.shape[0], cache.prefix_length)
            key_mask = torch.cat((ones, key_mask), dim=1)
        if positions is None:
            start = cache.length - cache.prefix_length
            positions = torch.arange(start, start + input_ids.shape[1], device=input_ids.device)[None]
        return self.hidden(input_ids, positions, [(cache, input_ids.shape[1])], key_mask, collect)

    def new_concat_cache(self, batch: int) -> ConcatCache:
        """An empty cache, or one that holds the P-Tuning prefix, through which gradients flow."""
        prefix = self.prefix()
        if prefix is None:
            return ConcatCache()
        prefix = prefix.to(self.dtype).transpose(2, 3)[:, :, None].expand(-1, -1, batch, -1, -1, -1)
        pairs = [pair.to(block.device) for pair, block in zip(prefix, self.blocks, strict=True)]
        return ConcatCache([(pair[0], pair[1]) for pair in pairs], prefix_length=prefix.shape[4])
