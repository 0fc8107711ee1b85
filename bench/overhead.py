"""Python overhead: greedy decoding through the engine beside the network's bare forwards on the same tokens.

Both run in turn, several times each, and the fastest of each counts; the bare forwards are one `hidden` and one
`logits` a token on a preallocated cache, nothing else.

    python bench/overhead.py [--tokens 256] [--threads 1]
    python bench/overhead.py --random           # random weights in nano's shape
"""

from __future__ import annotations

import argparse
import time

import torch
from rich.console import Console
from rich.table import Table

import chatglm3
from chatglm3.engine.engine import Engine
from chatglm3.engine.params import SamplingParams
from chatglm3.engine.sequence import Request
from chatglm3.model.cache import KVCache
from chatglm3.model.config import ModelConfig
from chatglm3.model.transformer import ChatGLMModel


def nano_sized_model() -> ChatGLMModel:
    """Random weights in the shape of the bundled model."""
    config = ModelConfig(
        num_layers=4,
        padded_vocab_size=4096,
        hidden_size=256,
        ffn_hidden_size=688,
        kv_channels=32,
        num_attention_heads=8,
        multi_query_group_num=2,
        add_qkv_bias=True,
        seq_length=2048,
    )
    return ChatGLMModel(config).eval().requires_grad_(False)


@torch.inference_mode()
def bare_seconds(model: ChatGLMModel, prompt: list[int], answer: list[int]) -> float:
    """Seconds for one forward of the prompt and one of each answer token but the last."""
    cache = KVCache(model.config, 1, len(prompt) + len(answer), model.dtype, [b.device for b in model.blocks])
    start = time.perf_counter()
    position = 0
    for tokens in [prompt, *([token] for token in answer[:-1])]:
        ids = torch.tensor([tokens])
        positions = torch.arange(position, position + len(tokens))[None]
        model.logits(model.hidden(ids, positions, [(cache, len(tokens))])[:, -1])
        position += len(tokens)
    return time.perf_counter() - start


def engine_seconds(engine: Engine, prompt: list[int], tokens: int) -> tuple[float, list[int]]:
    """Seconds for the greedy answer of `tokens` tokens through the engine, and the answer."""
    request = Request(tuple(prompt), SamplingParams(temperature=0, max_new_tokens=tokens))
    start = time.perf_counter()
    generation = engine.generate([request])[0]
    return time.perf_counter() - start, list(generation.token_ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--random", action="store_true", help="random weights in the shape of nano")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    model = nano_sized_model() if options.random else chatglm3.load("nano").model
    vocabulary = model.config.padded_vocab_size
    engine = Engine(model, vocabulary, kept_caches=0)
    table = Table(
        "prompt tokens", "bare: ms a token", "engine: ms a token", "ratio", title="random" if options.random else "nano"
    )
    for length in (8, 128, 512):
        prompt = [i % (vocabulary - 300) + 259 for i in range(length)]
        _, answer = engine_seconds(engine, prompt, options.tokens)
        pairs = [
            (bare_seconds(model, prompt, answer), engine_seconds(engine, prompt, options.tokens)[0])
            for _ in range(options.repeats)
        ]
        bare, ours = min(b for b, _ in pairs), min(e for _, e in pairs)
        scale = 1000 / options.tokens
        table.add_row(str(length), f"{bare * scale:.3f}", f"{ours * scale:.3f}", f"{ours / bare:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
