"""Tiny networks for the tests: random ones, and ones taught to give a chosen answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from chatglm3.model.config import ModelConfig
from chatglm3.model.transformer import ChatGLMModel


def tiny_config(vocab_size: int, *, layers: int = 2, context: int = 512, pre_seq_len: int | None = None) -> ModelConfig:
    """Two heads to each of two key/value groups, width 8; `vocab_size` rows."""
    return ModelConfig(
        num_layers=layers,
        padded_vocab_size=vocab_size,
        hidden_size=32,
        ffn_hidden_size=48,
        kv_channels=8,
        num_attention_heads=4,
        multi_query_group_num=2,
        add_qkv_bias=True,
        seq_length=context,
        pre_seq_len=pre_seq_len,
    )


def tiny_model(config: ModelConfig, seed: int = 0) -> ChatGLMModel:
    """Random weights so wide that attention is far from uniform, and which token follows depends on all before it."""
    generator = torch.Generator().manual_seed(seed)
    model = ChatGLMModel(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layernorm" not in name:
                scale = 1.0 if "embedding" in name else 2.0 / weight.shape[-1] ** 0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    return model.requires_grad_(False)


def teach(model: ChatGLMModel, examples: Sequence[tuple[Sequence[int], Sequence[int]]], steps: int = 300) -> None:
    """Train until every example's answer is what greedy decoding gives after its prompt."""
    model.requires_grad_(True)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(steps):
        losses, right = [], True
        for prompt, answer in examples:
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
            losses.append(torch.nn.functional.cross_entropy(logits, torch.tensor(answer)))
            right &= logits.argmax(-1).tolist() == list(answer)
        loss = torch.stack(losses).mean()
        if right and loss.item() < 0.05:
            model.requires_grad_(False)
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise AssertionError(f"not learned in {steps} steps (loss {loss.item():.3f})")


@torch.inference_mode()
def greedy(model: ChatGLMModel, prompt: Sequence[int], tokens: int, vocab_size: int) -> list[int]:
    """The most probable ids below `vocab_size`, with the whole text computed again for every token."""
    ids = list(prompt)
    for _ in range(tokens):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1, :vocab_size].argmax()))
    return ids[len(prompt) :]


@contextmanager
def tokens_computed(model: ChatGLMModel) -> Iterator[list[int]]:
    """How many tokens each forward pass takes, as a list that grows."""
    counts: list[int] = []
    embedding = model.transformer.embedding.word_embeddings
    handle = embedding.register_forward_hook(lambda _module, inputs, _output: counts.append(inputs[0].numel()))
    try:
        yield counts
    finally:
        handle.remove()
