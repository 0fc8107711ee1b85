"""A set of possible continuations as a trie of token ids, so that what several of them share is computed once.

Behind the prompt the network is run on chains of tokens, each from a branch of the trie towards the end of a
continuation; every log-probability asked for is found behind the prompt or behind a token of a chain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chatglm3.engine.prefix import common_prefix


@dataclass(frozen=True)
class Chain:
    """Tokens that follow the first `start` ones behind the prompt; each of them is a node of the trie."""

    start: int
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One token of a continuation: the node it follows, and the ids that stand for it."""

    node: int
    ids: tuple[int, ...]


class LabelTree:
    """Continuations of a prompt and how to find all their log-probabilities."""

    def __init__(self, labels: Sequence[Sequence[int]], end_ids: Sequence[int] = ()) -> None:
        """With `end_ids`, a label that begins another one is followed by one of them, where the other goes on."""
        paths = [tuple(label) for label in labels]
        inner = {path[:i] for path in paths for i in range(len(path))} if end_ids else set()
        self.chains: list[Chain] = []
        self._nodes: dict[tuple[int, ...], int] = {(): 0}
        for path in sorted(paths):  # so that a chain continues what the chain before it left in the cache
            self._add_chain(path if path in inner else path[:-1])
        self.steps = [self._steps_of(path, tuple(end_ids) if path in inner else ()) for path in paths]
        """Of each label: the log-probabilities that its score is the sum of."""
        self.depth = max((chain.start + len(chain.tokens) for chain in self.chains), default=0)
        """The most tokens that a cache must hold behind the prompt."""

    def _add_chain(self, path: tuple[int, ...]) -> None:
        known = next(i for i in range(len(path), -1, -1) if path[:i] in self._nodes)
        for i in range(known, len(path)):
            self._nodes[path[: i + 1]] = len(self._nodes)
        if known < len(path):
            self.chains.append(Chain(known, path[known:]))

    def _steps_of(self, path: tuple[int, ...], end_ids: tuple[int, ...]) -> list[Step]:
        steps = [Step(self._nodes[path[:i]], (path[i],)) for i in range(len(path))]
        return [*steps, Step(self._nodes[path], end_ids)] if end_ids else steps


def shared_beginning(labels: Sequence[Sequence[int]]) -> int:
    """How many tokens all labels begin with."""
    return min(common_prefix(labels[0], label) for label in labels)
