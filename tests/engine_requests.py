"""What the engine's tests ask for: prompts, one greedy answer, and several answers at once in threads."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import Any

from chatglm3.engine.engine import Engine
from chatglm3.engine.params import SamplingParams
from chatglm3.engine.sequence import Request

VOCABULARY = 256
PROMPT = (5, 17, 200)
GREEDY = SamplingParams(temperature=0, max_new_tokens=16)


def prompts(count: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Prompts of many lengths, some of which begin alike."""
    rng = random.Random(seed)
    stem = [rng.randrange(VOCABULARY) for _ in range(9)]
    rows = [[rng.randrange(VOCABULARY) for _ in range(rng.choice((1, 2, 7, 30)))] for _ in range(count)]
    return [(*stem[: rng.choice((0, 0, 4, 9))], *row) for row in rows]


def answer(engine: Engine, request: Request) -> list[int]:
    return list(engine.generate([request])[0].token_ids)


def in_threads(jobs: list[Callable[[], Any]]) -> list[Any]:
    results: list[Any] = [None] * len(jobs)
    barrier = threading.Barrier(len(jobs))

    def run(i: int) -> None:
        barrier.wait()
        try:
            results[i] = jobs[i]()
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
