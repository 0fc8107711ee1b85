"""Loading a quantised checkpoint in a fresh process with its files in the page cache, and running it once."""

from __future__ import annotations

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from load import memory, read_once


class Loaded(NamedTuple):
    """Seconds of `load_model` and of the forward behind it; bytes of the files, and those resident at four times.

    A forward reads every weight but only some rows of the embedding: `all_touched` is when the rest was read as well.
    """

    load: float
    forward: float
    before: int
    loaded: int
    after_forward: int
    all_touched: int
    file: int


def measure(checkpoint: Path, threads: int) -> Loaded:
    """Load once; every call is a fresh process."""
    read_once(checkpoint)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measure, checkpoint, threads).result()


def _measure(checkpoint: Path, threads: int) -> Loaded:
    import torch

    from chatglm3.model.checkpoint import list_tensors, load_model

    torch.set_num_threads(threads)
    before, start = memory("VmRSS"), time.perf_counter()
    model = load_model(checkpoint, device="cpu")
    load = time.perf_counter() - start
    loaded, start = memory("VmRSS"), time.perf_counter()
    with torch.inference_mode():
        model.logits(model.encode(torch.tensor([[259, 260, 261]]))[:, -1])
    forward = time.perf_counter() - start
    after_forward = memory("VmRSS")
    for tensor in model.state_dict().values():
        tensor.flatten()[::1024].sum()
    file = sum(info.nbytes for info in list_tensors(checkpoint).values())
    return Loaded(load, forward, before, loaded, after_forward, memory("VmRSS"), file)
