"""Many requests at once at the width of the 6B model: throughput, and how long a short one waits behind long prompts.

- 64 requests of mixed lengths (prompts of 16 to 128 tokens, answers of 16 to 128) arrive at random moments,
  faster than one at a time could be served: tokens a second, against the same requests one at a time;
- the first token of a request of 64 tokens when nothing else runs, and when it arrives at a random moment while four
  prompts of 1,024 tokens are computed.

    python bench/mixed.py                      # int4, 4 layers, random weights; ten minutes
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

REQUESTS, SPAN = 64, 20.0  # requests, and the seconds within which they arrive
SHORT, LONG, LONG_ONES, TRIALS = 64, 1024, 4, 9
LONG_SECONDS = 5.0  # after which the long ones give up


def run(path: Path, threads: int) -> None:
    """Measure and print."""
    from chatglm3.engine.engine import Engine
    from chatglm3.engine.params import SamplingParams
    from chatglm3.engine.sequence import Request
    from chatglm3.model.checkpoint import load_model
    from machine import describe, isa

    model = load_model(path, device="cpu")
    engine = Engine(model, model.config.padded_vocab_size, kept_caches=0)
    draw = random.Random(0)

    def request(prompt: int, answer: int, max_time: float | None = None) -> Request:
        params = SamplingParams(temperature=0, max_new_tokens=answer, max_time=max_time)
        return Request(tuple(draw.randrange(259, 64_789) for _ in range(prompt)), params)

    requests = [request(draw.randint(16, 128), draw.randint(16, 128)) for _ in range(REQUESTS)]
    tokens = sum(len(r.prompt) + (r.params.max_new_tokens or 0) for r in requests)
    arrivals = sorted(draw.uniform(0, SPAN) for _ in requests)

    def at(moment: float, one: Request, begin: float) -> None:
        time.sleep(max(0.0, begin + moment - time.perf_counter()))
        engine.generate([one])

    def together() -> float:
        begin = time.perf_counter()
        with ThreadPoolExecutor(REQUESTS) as pool:
            list(pool.map(at, arrivals, requests, [begin] * REQUESTS))
        return time.perf_counter() - begin

    def one_at_a_time() -> float:
        begin = time.perf_counter()
        for one in requests:
            engine.generate([one])
        return time.perf_counter() - begin

    def first_token() -> float:
        start = time.perf_counter()
        stream = engine.stream(request(SHORT, 2))
        next(stream)
        seconds = time.perf_counter() - start
        stream.close()
        return seconds

    def behind_long_prompts() -> float:
        with ThreadPoolExecutor(LONG_ONES) as pool:
            for _ in range(LONG_ONES):
                pool.submit(engine.generate, [request(LONG, 2, max_time=LONG_SECONDS)])
            time.sleep(1 + draw.random())
            return first_token()

    print(f"{describe(threads, isa())}, {path.name}", flush=True)
    alone, all_at_once = one_at_a_time(), together()
    print(
        f"one at a time {tokens / alone:.1f} tokens/s, together {tokens / all_at_once:.1f}: {alone / all_at_once:.2f} x"
    )
    idle = [first_token() for _ in range(TRIALS)]
    loaded = [behind_long_prompts() for _ in range(TRIALS)]
    quiet = statistics.median(idle)
    print(
        f"first token of {SHORT} tokens: idle {quiet:.2f} s, behind {LONG_ONES} prompts of {LONG}: median "
        f"{statistics.median(loaded):.2f} s ({statistics.median(loaded) / quiet:.2f} x), worst {max(loaded):.2f} s "
        f"({max(loaded) / quiet:.2f} x)"
    )


def main() -> None:
    from cpu import AVX2_ONLY

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", choices=("avx2", "native"), default="avx2")
    parser.add_argument("--folder", type=Path, help="where checkpoints are kept; a temporary folder if not given")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    if options.isa == "avx2":
        os.environ.update(AVX2_ONLY)
    from checkpoints import quantized_checkpoint

    with tempfile.TemporaryDirectory() as temporary:
        run(quantized_checkpoint(options.folder or Path(temporary), options.layers, 4), options.threads)


if __name__ == "__main__":
    main()
