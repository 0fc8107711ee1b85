"""Python overhead: greedy decoding through the engine beside the network's bare forwards on the same tokens.

The two take turns token by token, so the machine's noise meets both alike, and the median of each counts. The bare
forwards are one `hidden` and one `logits` a token on a preallocated cache, nothing else.

    python bench/overhead.py [--tokens 512] [--threads 1]
    python bench/overhead.py --random           # random weights in nano's shape
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Generator, Iterator

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
def bare_forwards(model: ChatGLMModel, prompt: list[int], answer: list[int]) -> Generator[None, None, None]:
    """One forward of the prompt and one of each token of the answer, nothing else."""
    cache = KVCache(model.config, 1, len(prompt) + len(answer), model.dtype, [b.device for b in model.blocks])
    position = 0
    for tokens in [prompt, *([token] for token in answer)]:
        ids = torch.tensor([tokens])
        positions = torch.arange(position, position + len(tokens))[None]
        model.logits(model.hidden(ids, positions, [(cache, len(tokens))])[:, -1])
        position += len(tokens)
        yield


def measure(model: ChatGLMModel, prompt: list[int], tokens: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each decoded token, bare and through the engine."""
    engine = Engine(model, model.config.padded_vocab_size, kept_caches=0)
    request = Request(tuple(prompt), SamplingParams(temperature=0, max_new_tokens=tokens))
    answer = list(engine.generate([request])[0].token_ids)
    sides: tuple[Iterator[object], Iterator[object]] = bare_forwards(model, prompt, answer), engine.stream(request)
    milliseconds: tuple[list[float], list[float]] = [], []
    for token in range(tokens):
        for side, times in zip(sides, milliseconds, strict=True):
            start = time.perf_counter()
            next(side)
            if token:  # the first comes with the prompt
                times.append(1000 * (time.perf_counter() - start))
    return milliseconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--random", action="store_true", help="random weights in the shape of nano")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    model = nano_sized_model() if options.random else chatglm3.load("nano").model
    table = Table("prompt tokens", "bare: ms a token", "engine: ms a token", "ratio")
    for length in (8, 128, 512):
        bare, ours = measure(model, [i % 3000 + 259 for i in range(length)], options.tokens)
        theirs, mine = statistics.median(bare), statistics.median(ours)
        table.add_row(str(length), f"{theirs:.3f}", f"{mine:.3f}", f"{mine / theirs:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
