"""Caches that outlive their request, found again by comparing token ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

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
        self._entries: list[tuple[Sequence[int], KVCache]] = []
        self._stamp: list[tuple[int, int]] = []

    def match(self, model: nn.Module) -> None:
        """Free every cache if the weights are no longer those that it was computed with.

        An adapter that comes or goes changes the set of weights, and a write to a weight its version.
        """
        stamp = [(id(p), 0 if p.is_inference() else p._version) for p in model.parameters()]
        if stamp != self._stamp:
            self._entries.clear()
            self._stamp = stamp

    def put(self, ids: Sequence[int], cache: KVCache) -> None:
        """Keep `cache`, which holds the tokens `ids`; the oldest one is freed when there are too many."""
        if ids:
            self._entries.append((ids, cache))
            del self._entries[: max(0, len(self._entries) - self._size)]

    def find(
        self, ids: Sequence[int], in_use: Iterable[tuple[Sequence[int], KVCache]] = ()
    ) -> tuple[KVCache | None, int]:
        """The cache that shares the most leading tokens with `ids`, kept here or `in_use`, and how many."""
        best, shared = None, 0
        for entry in [*self._entries, *in_use]:
            length = common_prefix(entry[0], ids)
            if length > shared:
                best, shared = entry, length
        if best is None:
            return None, 0
        if best in self._entries:
            self._entries.remove(best)
            self._entries.append(best)
        return best[1], shared

    def take(self, cache: KVCache) -> bool:
        """Give a cache away, whose new owner will write to it; false if it is not kept here."""
        before = len(self._entries)
        self._entries = [entry for entry in self._entries if entry[1] is not cache]
        return len(self._entries) < before

    def clear(self) -> None:
        """Free every cache."""
        self._entries.clear()

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(cache.nbytes for _, cache in self._entries)
