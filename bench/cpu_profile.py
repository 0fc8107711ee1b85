"""Where the time goes: every operation's share of prefill at 128 and 1,024 tokens and of decode at 1, 4 and 16 rows.

    python bench/cpu_profile.py                          # int4, 7 layers of the real width, random weights
    python bench/cpu_profile.py --bits 16 --isa native --folder /big/disk

Each operation is timed where the network calls it, so its Python is counted with it; what is left is the Python around
them: modules, cache, engine. The sampled decode draws with the official defaults from all 65,024 scores.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from cpu import AVX2_ONLY

CONTEXT, TOKENS = 256, 32  # tokens before the first decoded one, and decoded tokens measured
OPERATIONS = ("products", "attend", "rms_norm", "apply_rope", "swiglu", "add", "choose", "rest")


class Clock:
    """Seconds by operation since the last `reset`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.reset()

    def reset(self) -> None:
        self.seconds.clear()
        self._start = time.perf_counter()

    def wrap(self, owner: Any, name: str, operation: str) -> None:
        """Time every call of `owner.name`."""
        original = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = original(*args, **kwargs)
            self.seconds[operation] += time.perf_counter() - start
            return result

        setattr(owner, name, timed)

    def read(self) -> tuple[float, dict[str, float]]:
        """All seconds, and those of each operation."""
        total = time.perf_counter() - self._start
        return total, {**self.seconds, "rest": total - sum(self.seconds.values())}


class Profiler:
    """An engine whose operations are timed."""

    def __init__(self, path: Path) -> None:
        import numpy as np

        from chatglm3.engine.engine import Engine
        from chatglm3.kernels import products
        from chatglm3.model import transformer
        from chatglm3.model.checkpoint import load_model

        model = load_model(path, device="cpu")
        self._engine = Engine(model, model.config.padded_vocab_size, kept_caches=0)
        self._draw = np.random.default_rng(0)
        self._clock = Clock()
        for name in ("linear", "grouped_linear"):
            self._clock.wrap(products, name, "products")
        for name in ("attend", "rms_norm", "apply_rope", "swiglu", "add"):
            self._clock.wrap(transformer, name, name)
        self._clock.wrap(self._engine.core, "_hand_out", "choose")

    def _request(self, tokens: int, **sampling: Any) -> Any:
        from chatglm3.engine.params import SamplingParams
        from chatglm3.engine.sequence import Request

        return Request(tuple(self._draw.integers(259, 64_789, tokens).tolist()), SamplingParams(**sampling))

    def prefill(self, tokens: int) -> tuple[float, dict[str, float]]:
        """From a prompt to its first token."""
        self._engine.generate([self._request(32, max_new_tokens=1)])  # wakes the threads
        self._clock.reset()
        self._engine.generate([self._request(tokens, max_new_tokens=1, temperature=0)])
        return self._clock.read()

    def decode(self, rows: int, **sampling: Any) -> tuple[float, dict[str, float]]:
        """Steps of `rows` requests together."""
        from chatglm3.engine.sequence import Generating

        core, vocabulary = self._engine.core, self._engine.vocab_size
        request = self._request(CONTEXT, max_new_tokens=2 * TOKENS, **sampling)
        running = [Generating(request, 2 * TOKENS, vocabulary) for _ in range(rows)]
        for row in running:
            core.submit(row)
        while any(not row.output for row in running):
            core.step()
        self._clock.reset()
        for _ in range(TOKENS):
            core.step()
        result = self._clock.read()
        for row in running:
            row.cancel()
        core.tidy()
        return result


def run(path: Path) -> None:
    """Print the table."""
    from machine import describe, isa

    profiler = Profiler(path)
    print(
        f"{describe(2, isa())}, {path.name}\n\n| | ms | {' | '.join(OPERATIONS)} |\n|{' --- |' * (len(OPERATIONS) + 2)}"
    )
    for name, measure in {
        "prefill of 128": lambda: profiler.prefill(128),
        "prefill of 1,024": lambda: profiler.prefill(1024),
        "decode, 1 row": lambda: profiler.decode(1, temperature=0),
        "decode, 4 rows": lambda: profiler.decode(4, temperature=0),
        "decode, 16 rows": lambda: profiler.decode(16, temperature=0),
        "decode, 1 row, sampled": lambda: profiler.decode(1, seed=0),
        "decode, 16 rows, sampled": lambda: profiler.decode(16, seed=0),
    }.items():
        total, seconds = measure()
        steps = TOKENS if name.startswith("decode") else 1
        shares = " | ".join(f"{100 * seconds.get(operation, 0) / total:.1f} %" for operation in OPERATIONS)
        print(f"| {name} | {1e3 * total / steps:.1f} | {shares} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=int, choices=(4, 8, 16), default=4)
    parser.add_argument("--layers", type=int, default=7)
    parser.add_argument("--isa", choices=("avx2", "native"), default="avx2")
    parser.add_argument("--folder", type=Path, help="where checkpoints are kept; a temporary folder if not given")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "2"
    if options.isa == "avx2":
        os.environ.update(AVX2_ONLY)
    from checkpoints import half_checkpoint, quantized_checkpoint

    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if options.bits == 16:
            run(half_checkpoint(folder, options.layers))
        else:
            run(quantized_checkpoint(folder, options.layers, options.bits))


if __name__ == "__main__":
    main()
