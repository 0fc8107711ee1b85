"""Caches that outlive their request, found again by comparing token ids."""

from __future__ import annotations

from collections.abc import Sequence

from chatglm3.model.cache import KVCache


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many leading tokens `a` and `b` share."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))


class PrefixStore:
    """The caches of the last few finished requests, least recently used first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._entries: list[tuple[tuple[int, ...], KVCache]] = []

    def put(self, ids: Sequence[int], cache: KVCache) -> None:
        """Keep `cache`, which holds the tokens `ids`; the oldest one is freed when there are too many."""
        self._entries.append((tuple(ids), cache))
        del self._entries[: max(0, len(self._entries) - self._size)]

    def find(self, ids: Sequence[int]) -> tuple[KVCache | None, int]:
        """The cache that shares the most leading tokens with `ids`, and how many."""
        best = max(self._entries, key=lambda entry: common_prefix(entry[0], ids), default=None)
        if best is None:
            return None, 0
        self._entries.remove(best)
        self._entries.append(best)
        return best[1], common_prefix(best[0], ids)

    def take(self, cache: KVCache) -> None:
        """Give a cache away: its new owner will write to it."""
        self._entries = [entry for entry in self._entries if entry[1] is not cache]

    def clear(self) -> None:
        """Free every cache."""
        self._entries.clear()

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(cache.nbytes for _, cache in self._entries)
