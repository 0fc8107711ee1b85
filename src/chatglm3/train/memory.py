"""How much memory a run will need, told before a weight is read: from the network's shape and the rows' lengths.

An estimate of what PyTorch keeps for the backward pass, not of what allocators and libraries take besides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from chatglm3.model.config import ModelConfig
from chatglm3.model.placement import weight_bytes
from chatglm3.model.quantization import Quantization
from chatglm3.train.batches import Plan
from chatglm3.train.config import TrainConfig
from chatglm3.train.loss import CHUNK_BYTES

_TRAINED_BYTES = 16
"""Of a trained number: itself, its gradient and AdamW's two moments, all fp32."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device."""

    weights: int
    """Frozen ones."""
    trained: int
    """Trained numbers with their gradients and AdamW's moments."""
    activations: int
    scores: int
    """One chunk of logits with its gradient."""
    tokens: int
    """Of the longest forward pass."""

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.trained + self.activations + self.scores

    def __str__(self) -> str:
        return (
            f"about {_size(self.total)}: frozen weights {_size(self.weights)}, trained numbers with gradients and "
            f"AdamW {_size(self.trained)}, activations of {self.tokens:,} tokens {_size(self.activations)}, "
            f"logits {_size(self.scores)}"
        )


def estimate_memory(
    config: TrainConfig, model: ModelConfig, dtype: torch.dtype, plan: Plan, trained: int
) -> MemoryEstimate:
    """For the rows of `plan` and `trained` trained numbers; frozen weights and activations have `dtype`."""
    tokens = _most_tokens(plan)
    layer = _layer_bytes(config, model, dtype.itemsize) * tokens
    ends = tokens * model.hidden_size * 2 * 4  # the input and output of the final norm
    activations = layer * model.num_layers + ends
    if config.gradient_checkpointing:
        activations = layer + model.num_layers * tokens * model.hidden_size * dtype.itemsize + ends
    stored = replace(model, quantization=Quantization(config.quantize)) if config.quantize else model
    frozen = 0 if config.method == "full" else weight_bytes(stored, dtype)
    scores = 3 * min(CHUNK_BYTES, 4 * model.padded_vocab_size * tokens)
    return MemoryEstimate(frozen, _TRAINED_BYTES * trained, activations, scores, tokens)


def advice(config: TrainConfig, estimate: MemoryEstimate, free: int) -> str | None:
    """What to do if it does not fit into `free` bytes; None if it does."""
    if estimate.total <= free:
        return None
    ways = [] if config.gradient_checkpointing else ["gradient_checkpointing=true"]
    ways += ["batch_size=1 with a larger accumulation"] if config.batch_size > 1 else []
    ways += ["a smaller data.max_length"]
    ways += ["quantize=4"] if config.method != "full" and not config.quantize else []
    ways += ["method=lora"] if config.method == "full" else []
    return f"only {_size(free)} are free, so this may run out of memory; try {', '.join(ways)}"


def _most_tokens(plan: Plan) -> int:
    """Of a forward pass: its rows are the longest, and all of them over again if there are fewer than it has."""
    whole, rest = divmod(min(plan.batch_size, plan.total_rows), len(plan.lengths))
    return whole * sum(plan.lengths) + sum(sorted(plan.lengths, reverse=True)[:rest])


def _layer_bytes(config: TrainConfig, model: ModelConfig, itemsize: int) -> int:
    """What one block keeps of a token for the backward pass."""
    h, f, heads = model.hidden_size, model.ffn_hidden_size, model.num_attention_heads * model.kv_channels
    groups = model.multi_query_group_num * model.kv_channels
    kept = 2 * 4 * h  # the inputs of both norms, fp32
    kept += itemsize * 2 * (heads + groups)  # queries, keys, values and output of attention
    kept += itemsize * 3 * f  # gate, value and the gate's SiLU
    if config.method == "lora":
        inputs = {"query_key_value": h, "dense": heads, "dense_h_to_4h": h, "dense_4h_to_h": f}
        return kept + sum(inputs[name] * (5 if config.lora.dropout else 4) for name in config.lora.targets)
    if config.method == "full":
        kept += 2 * 4 * h + itemsize * (2 * h + heads + f)  # normed values; the inputs of the four linear layers
    return kept


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
