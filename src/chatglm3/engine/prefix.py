"""Every key/value cache there is: those of running requests, and those that outlive one, found again by token ids.

The store counts bytes. A new cache is made only if all caches together stay within the limit; of those that nobody runs
on, the least recently used give way first. A pinned one never does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from chatglm3.model.adapters import Adapter
from chatglm3.model.cache import KVCache


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading tokens `a` and `b` share."""
    low, high = 0, min(len(a), len(b))
    while low < high:  # slices compare much faster than a loop over tokens
        middle = (low + high + 1) // 2
        if list(a[low:middle]) == list(b[low:middle]):
            low = middle
        else:
            high = middle - 1
    return low


@dataclass(eq=False)
class Entry:
    """A cache, the tokens that it holds, and the adapter that it was computed with; it is of no use for another."""

    ids: Sequence[int]
    cache: KVCache
    adapter: Adapter | None = None
    pinned: bool = False


class PrefixStore:
    """Makes caches, keeps some of those that are finished, and counts all of them."""

    def __init__(
        self,
        new_cache: Callable[[int, int], KVCache],
        cost: Callable[[int, int], int],
        *,
        size: int,
        limit: int,
    ) -> None:
        """`new_cache(batch, capacity)` takes `cost(batch, capacity)` bytes; `limit` of all, at most `size` are kept."""
        self._new_cache, self.cost = new_cache, cost
        self._size, self.limit = size, limit
        self._kept: list[Entry] = []  # the least recently used first
        self._used: list[KVCache] = []
        self._stamp: list[tuple[int, int]] = []

    @property
    def nbytes(self) -> int:
        """Bytes of all caches."""
        return sum(entry.cache.nbytes for entry in self._kept) + sum(cache.nbytes for cache in self._used)

    def match(self, model: nn.Module) -> None:
        """Free every kept cache if the weights are no longer those that it was computed with.

        An adapter that is loaded or unloaded changes the set of weights, and a write to a weight its version. One that
        acts only in the steps of its requests does neither.
        """
        stamp = [(id(p), 0 if p.is_inference() else p._version) for p in model.parameters()]
        if stamp != self._stamp:
            self._kept.clear()
            self._stamp = stamp

    def acquire(
        self, prompt: Sequence[int], capacity: int, running: Sequence[Entry] = (), adapter: Adapter | None = None
    ) -> tuple[KVCache, int] | None:
        """A cache for `prompt` and how many of its tokens it holds; None if there is no room at the moment.

        The last token is always left to compute. What `running` requests hold may be copied too. Only what was computed
        with `adapter` counts.
        """
        found, shared = self._find(prompt[:-1], running, adapter)
        if found and self._can_take(found, shared, capacity):
            self._kept.remove(found)
            cache = found.cache
        else:
            if not self._make_room(self.cost(1, capacity), spared=found):
                found, shared = None, 0  # what would be copied must give way as well
                if not self._make_room(self.cost(1, capacity)):
                    return None
            cache = self._new_cache(1, capacity)
            if found:
                cache.copy_from(found.cache, shared)
        self._used.append(cache)
        return cache, shared

    def _can_take(self, entry: Entry, shared: int, capacity: int) -> bool:
        """Whether a kept cache can go to its new owner as it is, with room enough behind what is shared."""
        whole = shared == entry.cache.tokens and entry.cache.capacity >= capacity
        return whole and entry in self._kept and not entry.pinned

    def no_room(self, batch: int, capacity: int) -> str:
        """What to tell whoever can never get such a cache."""
        free = self.limit - sum(entry.cache.nbytes for entry in self._kept if entry.pinned)
        return (
            f"{batch * capacity} tokens need a cache of {self.cost(batch, capacity):,} bytes and {free:,} are allowed; "
            "ask for fewer tokens, or allow more with cache_bytes="
        )

    def allocate(self, batch: int, capacity: int) -> KVCache | None:
        """An empty cache of several rows; None if there is no room."""
        if not self._make_room(self.cost(batch, capacity)):
            return None
        cache = self._new_cache(batch, capacity)
        self._used.append(cache)
        return cache

    def release(self, cache: KVCache, ids: Sequence[int] = (), adapter: Adapter | None = None) -> None:
        """Take back a cache; it is kept if `ids`, the tokens that it holds, are given."""
        self._used = [used for used in self._used if used is not cache]
        if ids:
            self._kept.append(Entry(ids, cache, adapter))
            unpinned = [entry for entry in self._kept if not entry.pinned]
            for entry in unpinned[: max(0, len(unpinned) - self._size)]:
                self._kept.remove(entry)

    def pin(self, ids: Sequence[int], cache: KVCache, adapter: Adapter | None = None) -> Entry:
        """Take back a cache and keep it until `unpin`."""
        self._used = [used for used in self._used if used is not cache]
        entry = Entry(ids, cache, adapter, pinned=True)
        self._kept.append(entry)
        return entry

    def unpin(self, entry: Entry) -> None:
        """Free what was pinned."""
        self._kept = [kept for kept in self._kept if kept is not entry]

    def forget(self) -> None:
        """Free every kept cache that is not pinned."""
        self._kept = [entry for entry in self._kept if entry.pinned]

    def forget_adapter(self, adapter: Adapter) -> None:
        """Free every kept cache that was computed with `adapter` and is not pinned."""
        self._kept = [entry for entry in self._kept if entry.pinned or entry.adapter is not adapter]

    def clear(self) -> None:
        """Forget every cache."""
        self._kept.clear()
        self._used.clear()

    def _find(self, ids: Sequence[int], running: Sequence[Entry], adapter: Adapter | None) -> tuple[Entry | None, int]:
        best, shared = None, 0
        for entry in [*self._kept, *running]:
            if entry.adapter is not adapter:
                continue
            length = common_prefix(entry.ids, ids)
            if length > shared:
                best, shared = entry, length
        if best in self._kept:
            self._kept.remove(best)
            self._kept.append(best)
        return best, shared

    def _make_room(self, needed: int, spared: Entry | None = None) -> bool:
        """Free the oldest kept caches until `needed` bytes fit; false, and nothing freed, if they cannot."""
        evictable = [entry for entry in self._kept if not entry.pinned and entry is not spared]
        excess = self.nbytes + needed - self.limit
        if excess > sum(entry.cache.nbytes for entry in evictable):
            return False
        for entry in evictable:
            if excess <= 0:
                break
            excess -= entry.cache.nbytes
            self._kept.remove(entry)
        return True
