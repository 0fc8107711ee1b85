"""Caches that a call works with itself, beside those of the requests that run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from chatglm3.engine.core import Core
from chatglm3.engine.prefix import PrefixStore, common_prefix
from chatglm3.engine.sequence import Prefilling
from chatglm3.engine.turns import Turns
from chatglm3.errors import DeviceError
from chatglm3.model.adapters import Adapter, acting
from chatglm3.model.cache import KVCache


class Workspace:
    """Prompts that are computed for their caches, and empty caches of several rows."""

    def __init__(self, store: PrefixStore, core: Core, turns: Turns) -> None:
        self._store, self._core, self._turns = store, core, turns

    @contextmanager
    def computed(self, prompt: tuple[int, ...], adapter: Adapter | None) -> Iterator[Prefilling]:
        """A prompt in a cache, with the scores behind it; the cache goes to the store afterwards."""
        sequence = Prefilling(prompt, 0, adapter=adapter)
        with self._turns.submitted([sequence]):
            self._turns.wait(lambda: sequence.is_computed or sequence.is_done)
            sequence.raise_error()
            yield sequence

    def compute_shared(self, prompts: Sequence[Sequence[int]], adapter: Adapter | None) -> None:
        """Compute what all prompts begin with, once, so that each of them finds it in the store."""
        if len(prompts) < 2:
            return
        size = min(common_prefix(prompts[0], prompt) for prompt in prompts[1:])
        if size > 1:
            with self.computed(tuple(prompts[0][:size]), adapter):
                pass

    @contextmanager
    def rows(self, batch: int, capacity: int, adapter: Adapter | None, *, beside: int = 0) -> Iterator[KVCache]:
        """An empty cache of several rows; waits until there is room, as long as more than `beside` requests run."""
        while True:
            with self._turns.alone(), acting(adapter):
                cache, (_, running) = self._store.allocate(batch, capacity), self._core.load
            if cache is not None:
                break
            if running <= beside:
                raise DeviceError(self._store.no_room(batch, capacity))
            self._turns.wait_a_step()
        try:
            yield cache
        finally:
            self._store.release(cache)
