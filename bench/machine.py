"""What a measurement ran on, and how fast this machine's threads can read memory."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

from chatglm3.kernels import native

_BYTES = 1 << 30  # well beyond any cache, and about what the weights of seven layers at 4 bits take
_PATIENCE, _MOMENT, _QUIET = 60.0, 0.3, 0.9  # seconds to wait for a moment in which processors are idle to this share
_OTHERS = 0.05  # share of the processors' time that others may take


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        if names:
            return names[0]
    return platform.processor() or platform.machine()


def isa() -> str:
    """The instruction set of our kernels in this process, and the best that torch may use."""
    return f"kernels {native.isa()}, torch {torch.backends.cpu.get_cpu_capability()}"


def describe(threads: int, isa: str) -> str:
    """One line: processor, cores, threads, instruction sets allowed, date."""
    return f"{cpu_name()}, {os.cpu_count()} cores, {threads} threads, {isa}, {time.strftime('%Y-%m-%d')}"


def undisturbed(action: Callable[[], float]) -> float:
    """What `action` returns. It starts when the processors have been idle for a moment: nobody else works and no thread
    of ours spins. If other processes took a share of the processors meanwhile, it is done again, twice at most.
    """
    for _ in range(3):
        _wait_for_quiet()
        (idle, total), own = _processor_times(), time.process_time()
        value = action()
        (idle_now, total_now), own_now = _processor_times(), time.process_time()
        others = (total_now - total) - (idle_now - idle) - (own_now - own)
        if others <= _OTHERS * (total_now - total):
            return value
    print("a measurement counts though other processes disturbed it three times; run again on a quiet machine")
    return value


def _wait_for_quiet() -> None:
    end = time.perf_counter() + _PATIENCE
    while time.perf_counter() < end:
        idle, total = _processor_times()
        time.sleep(_MOMENT)
        idle_now, total_now = _processor_times()
        if idle_now - idle >= _QUIET * (total_now - total):
            return


class ReadBandwidth:
    """Bytes a second that `threads` threads read from a buffer of 1 GiB: the best of every way there is."""

    def __init__(self, threads: int) -> None:
        self._floats = torch.zeros(_BYTES // 4).normal_().view(-1, 4096)
        integers = self._floats.view(-1).numpy().view(np.int64)
        self._parts = np.array_split(integers, threads)
        self._vector = torch.ones(4096)
        self._pool = ThreadPoolExecutor(threads)
        self._ways: list[Callable[[], object]] = [
            lambda: list(self._pool.map(np.sum, self._parts)),
            lambda: list(self._pool.map(np.bitwise_xor.reduce, self._parts)),
            lambda: torch.mv(self._floats, self._vector),
        ]
        native_read = _native_read()
        if native_read is not None:
            self._ways.append(lambda: native_read(self._floats.data_ptr(), _BYTES, threads))

    def measure(self) -> float:
        """Bytes a second, now."""
        return _BYTES / min(_seconds(way) for way in self._ways for _ in range(2))

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown()


def _processor_times() -> tuple[float, float]:
    """Seconds that all processors together were idle, and all their seconds; zeros on a system that does not tell."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0, 0.0
    seconds = [int(ticks) / os.sysconf("SC_CLK_TCK") for ticks in stat.read_text().splitlines()[0].split()[1:9]]
    return seconds[3] + seconds[4], sum(seconds)


def _native_read() -> Callable[[int, int, int], object] | None:
    try:
        read: Callable[[int, int, int], object] | None = getattr(
            import_module("chatglm3.kernels._native"), "read_bandwidth", None
        )
    except ImportError:
        return None
    return read


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
