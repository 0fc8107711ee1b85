"""A 20-turn conversation: time to the first token with the cached prefix reused, and with everything computed again.

Two engines answer in turn on one model, so the machine's noise meets both alike; their answers must be the same.

    python bench/turns.py                       # nano
    python bench/turns.py --layers 2            # random weights of the real width
"""

import argparse
import time

import torch
from rich.console import Console
from rich.table import Table

import chatglm3
from chatglm3.engine.engine import Engine
from chatglm3.engine.params import SamplingParams
from chatglm3.engine.sequence import Request
from random_model import random_model

USER_TOKENS, ANSWER_TOKENS = 24, 16


def turn(engine: Engine, prompt: tuple[int, ...]) -> tuple[float, list[int]]:
    """Milliseconds to the first token, and the answer's ids (greedy, always `ANSWER_TOKENS` long)."""
    params = SamplingParams(temperature=0, max_new_tokens=ANSWER_TOKENS)
    start = time.perf_counter()
    stream = engine.stream(Request(prompt, params))
    first = next(stream)
    milliseconds = 1000 * (time.perf_counter() - start)
    return milliseconds, [i for i in (first, *stream) if isinstance(i, int)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--layers", type=int, help="random weights of the real width instead of nano")
    options = parser.parse_args()

    model = random_model(options.layers, torch.float32) if options.layers else chatglm3.load("nano").model
    vocabulary = min(model.config.padded_vocab_size, 64789)
    engines = {"reused": Engine(model, vocabulary), "computed again": Engine(model, vocabulary, kept_caches=0)}

    generator = torch.Generator().manual_seed(0)
    prompt: tuple[int, ...] = ()
    table = Table("turn", "prompt tokens", "reused: ms", "computed again: ms", "ratio")
    for number in range(1, options.turns + 1):
        prompt += tuple(torch.randint(259, vocabulary - 9, (USER_TOKENS,), generator=generator).tolist())
        results = {name: turn(engine, prompt) for name, engine in engines.items()}
        (reused, answer), (again, expected) = results["reused"], results["computed again"]
        assert answer == expected, f"turn {number}: the answers differ"
        table.add_row(str(number), str(len(prompt)), f"{reused:.1f}", f"{again:.1f}", f"{again / reused:.1f}")
        prompt += tuple(answer)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
