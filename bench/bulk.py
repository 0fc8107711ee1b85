"""Classifying rows on one long prompt at the width of the 6B model: the official way, llama.cpp done well, and here.

200 rows of 24 to 60 tokens of their own stand behind a shared prefix of 512 tokens; the answer is one of two labels.
Weights are random and the same for everybody (4 layers, int4 here and Q4_0 there). The contenders take turns:

- official: one `chat` a row; the whole prompt is computed again, and eight tokens are generated (with this project's
  kernels, so that only the way differs);
- llama.cpp: the prefix's state is kept, the row's own tokens are computed, the labels' scores are read behind them;
- here: `Engine.rank`, which `ChatGLM.classify` calls.

    python bench/bulk.py                                     # 6 GB of disk, a quarter of an hour with the files
    python bench/bulk.py --folder /big/disk --rounds 3       # keep the files for the next run

llama.cpp is left out if it is not installed (pip install llama-cpp-python gguf).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PREFIX, OWN, ROWS, ANSWER = 512, (24, 60), 200, 8
OFFICIAL_ROWS = 8  # of them, in each round: a row takes seconds
LABELS = (5_000, 6_000)


def prompts() -> tuple[list[int], list[list[int]]]:
    """The shared prefix, and every row's own tokens."""
    import numpy as np

    draw = np.random.default_rng(0)

    def some(count: int) -> list[int]:
        ids: list[int] = draw.integers(7_000, 64_789, count).tolist()
        return ids

    return some(PREFIX), [some(int(draw.integers(OWN[0], OWN[1] + 1))) for _ in range(ROWS)]


def run(options: argparse.Namespace, folder: Path) -> None:
    """Measure and print rows a second."""
    from chatglm3.engine.engine import Engine
    from chatglm3.engine.labels import LabelTree
    from chatglm3.engine.params import SamplingParams
    from chatglm3.engine.sequence import Request
    from chatglm3.model.checkpoint import load_model
    from checkpoints import gguf_file, quantized_checkpoint
    from contenders import LlamaCpp, installed
    from machine import describe, isa, undisturbed

    model = load_model(quantized_checkpoint(folder, options.layers, 4), device="cpu")
    engine = Engine(model, model.config.padded_vocab_size)
    official = Engine(model, model.config.padded_vocab_size, kept_caches=0)
    llama = None
    if installed("llama"):
        llama = LlamaCpp(gguf_file(folder, options.layers, "Q4_0"), "Q4_0", options.threads)
    prefix, rows = prompts()
    tree = LabelTree([(label,) for label in LABELS])
    answer = SamplingParams(temperature=0, max_new_tokens=ANSWER)

    def one_chat_a_row() -> float:
        start = time.perf_counter()
        for row in rows[:OFFICIAL_ROWS]:
            official.generate([Request((*prefix, *row), answer)])
        return OFFICIAL_ROWS / (time.perf_counter() - start)

    def llama_with_state() -> float:
        assert llama is not None
        start = time.perf_counter()
        llama.keep(prefix)
        for row in rows:
            scores = llama.behind_kept(row)
            max(LABELS, key=lambda label: scores[label])
        return ROWS / (time.perf_counter() - start)

    def here() -> float:
        engine.forget()
        before = engine.counters.computed_tokens
        start = time.perf_counter()
        engine.rank([[*prefix, *row] for row in rows], tree)
        seconds = time.perf_counter() - start
        computed = engine.counters.computed_tokens - before
        assert computed <= PREFIX + sum(map(len, rows)) + ROWS, "the prefix, and every row's own tokens, once"
        return ROWS / seconds

    ways: dict[str, Callable[[], float]] = {"official way": one_chat_a_row, "here": here}
    if llama is not None:
        ways["llama.cpp Q4_0, prefix kept"] = llama_with_state
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            found[name].append(undisturbed(way))
    print(f"{describe(options.threads, isa())}, {options.layers} layers")
    ours = statistics.median(found["here"])
    for name, values in found.items():
        rate = statistics.median(values)
        print(f"{name:30} {rate:7.3f} rows/s ({min(values):.3f} to {max(values):.3f})   here / it: {ours / rate:.2f}")


def main() -> None:
    from cpu import AVX2_ONLY

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--isa", choices=("avx2", "native"), default="avx2", help="instructions everybody may use")
    parser.add_argument("--folder", type=Path, help="where checkpoints are kept; a temporary folder if not given")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    if options.isa == "avx2":
        os.environ.update(AVX2_ONLY)
    with tempfile.TemporaryDirectory() as temporary:
        run(options, options.folder or Path(temporary))


if __name__ == "__main__":
    main()
