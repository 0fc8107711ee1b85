"""The loop's one turn: admit who waits, run the network once on what is pending, hand out the scores, let go.

The core belongs to one thread at a time; `Engine` sees to that.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from chatglm3.engine.network import Network, bad_rows
from chatglm3.engine.prefix import Entry, PrefixStore
from chatglm3.engine.schedule import next_adapter, plan
from chatglm3.engine.sequence import RunningSequence
from chatglm3.errors import DeviceError
from chatglm3.model.adapters import Adapter, acting


@dataclass
class Counters:
    """What the core has done so far."""

    steps: int = 0
    computed_tokens: int = 0
    reused_tokens: int = 0
    """Prompt tokens whose keys and values were there already."""
    seconds: float = 0.0
    network_seconds: float = 0.0
    """Of them, those that the network took."""


class Core:
    """Sequences that wait and run, their caches, and the network."""

    def __init__(self, network: Network, store: PrefixStore, *, max_batch: int, chunk: int) -> None:
        self.network, self.store, self.counters = network, store, Counters()
        self._max_batch, self._chunk = max_batch, chunk
        self._arrived: deque[RunningSequence] = deque()
        self._running: list[RunningSequence] = []
        self._adapter: Adapter | None = None  # whose turn the last step was

    def submit(self, sequence: RunningSequence) -> None:
        """Let a sequence wait for its turn; those that came first are admitted first."""
        self._arrived.append(sequence)

    @property
    def load(self) -> tuple[int, int]:
        """How many sequences wait and run."""
        return len(self._arrived), len(self._running)

    @torch.inference_mode()
    def step(self) -> None:
        """One turn."""
        start = time.perf_counter()
        self.tidy()
        self._admit()
        self._adapter = adapter = next_adapter(self._running, self._adapter)
        parts = plan([s for s in self._running if s.adapter is adapter], self._chunk)
        if parts:
            with acting(adapter):
                self._run(parts)
        self.tidy()
        self.counters.seconds += time.perf_counter() - start

    def give_up(self, sequence: RunningSequence) -> None:
        """Leave a running sequence's cache to the caller."""
        self._running.remove(sequence)

    def clear(self) -> None:
        """Forget every sequence."""
        self._arrived.clear()
        self._running.clear()
        self._adapter = None

    def tidy(self) -> None:
        """Let go of what is done, cancelled or late."""
        now = time.monotonic()
        for sequence in [s for s in self._running if s.is_over(now)]:
            self._running.remove(sequence)
            kept = sequence.computed_ids if sequence.keep and sequence.error is None else ()
            self.store.release(sequence.cache, kept, sequence.adapter)
        for sequence in [s for s in self._arrived if s.is_over(now)]:
            self._arrived.remove(sequence)

    def _admit(self) -> None:
        """Give caches to those that waited longest, as long as the memory and the batch have room."""
        if self._arrived:
            self.store.match(self.network.model)
        while self._arrived and len(self._running) < self._max_batch:
            sequence = self._arrived[0]
            held = [Entry(s.computed_ids, s.cache, s.adapter) for s in self._running]
            capacity = len(sequence.prompt) + sequence.room
            with acting(sequence.adapter):  # a new cache begins with its prefix, if it is one
                found = self.store.acquire(sequence.prompt, capacity, held, sequence.adapter)
            if found is None:
                if not self._running:
                    sequence.error = DeviceError(self.store.no_room(1, capacity))
                    self._arrived.popleft()
                    continue
                return
            self._arrived.popleft()
            self._running.append(sequence)
            sequence.begin(*found)
            self.counters.reused_tokens += found[1]

    def _run(self, parts: list[tuple[RunningSequence, list[int]]]) -> None:
        """One run of the network; whatever interrupts it, the caches are as they were."""
        start, held = time.perf_counter(), [sequence.cache.tokens for sequence, _ in parts]
        wanted = [(sequence, sequence.wants(len(tokens))) for sequence, tokens in parts]
        try:
            hidden = self.network.run([(sequence.cache, tokens) for sequence, tokens in parts])
            rows = _rows([len(tokens) for _, tokens in parts], [count for _, count in wanted])
            scores = self.network.scores(hidden if len(rows) == len(hidden) else hidden[rows]) if rows else None
        except BaseException:
            for (sequence, _), tokens in zip(parts, held, strict=True):
                sequence.cache.truncate(tokens)
            raise
        self.counters.steps += 1
        self.counters.computed_tokens += len(hidden)
        self.counters.network_seconds += time.perf_counter() - start
        if scores is not None:
            self._hand_out(scores, [(sequence, count) for sequence, count in wanted if count])

    def _hand_out(self, scores: Tensor, wanted: list[tuple[RunningSequence, int]]) -> None:
        """Give everybody its scores. What goes wrong with one of them is its own error; an interruption waits."""
        bad, end, interruption = bad_rows(scores), 0, None
        for sequence, count in wanted:
            start, end = end, end + count
            worst = next((row for row in bad if start <= row < end), None)
            try:
                if worst is not None:
                    context = sequence.computed_ids
                    raise self.network.diagnose(context[: len(context) - (end - 1 - worst)])
                sequence.receive(scores[start:end])
            except Exception as error:
                sequence.error = error
            except BaseException as error:
                sequence.cancel()
                interruption = error
        if interruption is not None:
            raise interruption


def _rows(lengths: Sequence[int], wanted: Sequence[int]) -> list[int]:
    """Of parts laid end to end: the last `wanted` places of each."""
    ends = accumulate(lengths)
    return [row for end, count in zip(ends, wanted, strict=True) for row in range(end - count, end)]
