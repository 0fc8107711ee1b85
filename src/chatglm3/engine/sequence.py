"""Requests on their way through the engine: what each wants computed next, and what it makes of the scores."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from torch import Tensor

from chatglm3.engine.constraint import Constraint
from chatglm3.engine.labels import LabelTree
from chatglm3.engine.params import SamplingParams
from chatglm3.engine.sampling import Sampler, TokenLogprobs
from chatglm3.model.adapters import Adapter
from chatglm3.model.cache import KVCache

EndReason: TypeAlias = Literal["stop", "length", "deadline", "cancelled"]


@dataclass(frozen=True)
class Request:
    """A prompt and how to continue it.

    `stop_ids` end the answer; `should_stop` is told every other token and ends it by returning true (how text that the
    engine cannot see, such as a stop string, ends an answer). `constraint` says which tokens may come next. `adapter`
    names one of `Engine.adapters`; None is the model as it was loaded.
    """

    prompt: tuple[int, ...]
    params: SamplingParams
    stop_ids: frozenset[int] = frozenset()
    should_stop: Callable[[int], bool] | None = None
    constraint: Constraint | None = None
    adapter: str | None = None


@dataclass(frozen=True)
class Generation:
    """What the engine made of a request. `token_ids` are without the stop id, which is in `stop_id` if one was met."""

    token_ids: tuple[int, ...]
    finish_reason: EndReason
    stop_id: int | None
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens whose keys and values were there already."""
    logprobs: tuple[TokenLogprobs, ...] | None


@dataclass(frozen=True)
class Ranking:
    """Log-probabilities of each step of each label of a `LabelTree` behind one prompt."""

    logprobs: tuple[tuple[float, ...], ...]
    prompt_tokens: int
    cached_tokens: int


class RunningSequence(ABC):
    """Known tokens, some of them in a cache, and what to do with the scores behind them.

    The engine gives it a cache (`begin`), runs `pending` tokens through the network, and hands it the scores that it
    `wants`, until it `is_done`. `error` is what went wrong with it alone.
    """

    def __init__(
        self,
        prompt: tuple[int, ...],
        room: int,
        *,
        keep: bool = True,
        deadline: float | None = None,
        adapter: Adapter | None = None,
    ) -> None:
        """`room` tokens may follow the prompt; `keep` its cache for others; `deadline` in seconds from now.

        `adapter` acts on the network in its steps.
        """
        self.prompt, self.room, self.keep, self.adapter = prompt, room, keep, adapter
        self.cached_tokens = 0
        self.error: Exception | None = None
        self.ended: EndReason | None = None
        self._cache: KVCache | None = None
        self._deadline = None if deadline is None else time.monotonic() + deadline

    @property
    def cache(self) -> KVCache:
        """Its cache, once it runs."""
        if self._cache is None:
            raise RuntimeError("a waiting request has no cache")
        return self._cache

    def raise_error(self) -> None:
        """Raise what went wrong with it, if anything did."""
        if self.error is not None:
            raise self.error

    def begin(self, cache: KVCache, cached_tokens: int) -> None:
        """Admit it; the cache holds the first `cached_tokens` of its prompt."""
        self._cache, self.cached_tokens = cache, cached_tokens

    @property
    def tail(self) -> tuple[int, ...] | list[int]:
        """The known tokens behind the prompt."""
        return ()

    @property
    def token_ids(self) -> list[int]:
        """All known tokens."""
        return [*self.prompt, *self.tail]

    @property
    def computed_ids(self) -> list[int]:
        """The tokens that the cache holds."""
        return self.token_ids[: self.cache.tokens]

    @property
    def remaining(self) -> int:
        """How many known tokens the network has not seen."""
        return len(self.prompt) + len(self.tail) - self.cache.tokens

    def pending(self, limit: int) -> list[int]:
        """The next tokens, at most `limit`, that the network has not seen."""
        done, prompt = self.cache.tokens, self.prompt
        if done >= len(prompt):
            return list(self.tail[done - len(prompt) :][:limit])
        part = list(prompt[done : done + limit])
        return [*part, *self.tail[: limit - len(part)]]

    def wants(self, count: int) -> int:
        """Behind how many of the last of `count` pending tokens it wants the scores."""
        return 1 if count == self.remaining else 0

    @abstractmethod
    def receive(self, scores: Tensor) -> None:
        """Take the scores [n, vocabulary] that it wanted, n > 0; the cache holds their tokens already."""

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to do for it."""
        return self.ended is not None or self.error is not None

    def is_over(self, now: float) -> bool:
        """Whether it is done; it ends if its time is over at `now`, a moment of the monotonic clock."""
        if self._deadline is not None and self.ended is None and now > self._deadline:
            self.ended = "deadline"
        return self.ended is not None or self.error is not None

    def cancel(self) -> None:
        """End it before its next step."""
        if self.ended is None:
            self.ended = "cancelled"


class Prefilling(RunningSequence):
    """A prompt to be computed; it keeps its cache, and `scores` [1, vocabulary] behind it, until it is cancelled."""

    scores: Tensor
    is_computed = False

    def receive(self, scores: Tensor) -> None:
        """The scores behind the prompt."""
        self.scores, self.is_computed = scores, True


class Generating(RunningSequence):
    """A request that chooses its next tokens."""

    def __init__(self, request: Request, room: int, vocab_size: int, adapter: Adapter | None = None) -> None:
        """`room` is the most tokens that may be generated; `adapter` is what the request names."""
        super().__init__(request.prompt, room, deadline=request.params.max_time, adapter=adapter)
        self.request = request
        self.output: list[int] = []
        self._logprobs: list[TokenLogprobs] = []
        self._stop_id: int | None = None
        self._told = 0
        self._sampler = Sampler(request.params, request.prompt, request.stop_ids, vocab_size, request.constraint)
        self._force()

    @property
    def tail(self) -> list[int]:
        """The answer so far."""
        return self.output

    def receive(self, scores: Tensor) -> None:
        """Choose the next token."""
        row, sampler = scores[-1], self._sampler
        token = int(row.numpy().argmax()) if sampler.takes_argmax else sampler.choose(row)
        logprobs = sampler.logprobs(row, token)
        if logprobs is not None:
            self._logprobs.append(logprobs)
        self._accept(token)
        self._force()

    def _force(self) -> None:
        """Take the tokens that the constraint leaves no choice about, without asking the network."""
        constraint = self.request.constraint
        if constraint is None or self.request.params.logprobs is not None:
            return
        for token in constraint.forced():
            if self.ended is None:
                self._accept(token)

    def _accept(self, token_id: int) -> None:
        self._sampler.observe(token_id)
        if token_id in self.request.stop_ids:
            self.ended, self._stop_id = "stop", token_id
            return
        self.output.append(token_id)
        constraint = self.request.constraint
        if self.request.should_stop is not None and self.request.should_stop(token_id):
            self.ended = "stop"
        elif constraint is not None and constraint.finished:
            self.ended = "stop"  # nothing but a stop id may follow, so none is computed
        elif len(self.output) >= self.room:
            self.ended = "length"

    @property
    def is_told(self) -> bool:
        """Whether it is done and all its tokens have been taken."""
        return self.is_done and self._told == len(self.output)

    @property
    def has_news(self) -> bool:
        """Whether it has tokens that nobody has taken yet, or is done."""
        return self._told < len(self.output) or self.is_done

    def news(self) -> list[int]:
        """The tokens that have come since the last call."""
        new = self.output[self._told :]
        self._told += len(new)
        return new

    def generation(self) -> Generation:
        """The result, once it is done."""
        logprobs = tuple(self._logprobs) if self.request.params.logprobs is not None else None
        return Generation(
            tuple(self.output), self.ended or "length", self._stop_id, len(self.prompt), self.cached_tokens, logprobs
        )


class Scoring(RunningSequence):
    """A prompt behind which the labels of a tree are scored, chain by chain."""

    def __init__(
        self, prompt: tuple[int, ...], tree: LabelTree, *, keep: bool = True, adapter: Adapter | None = None
    ) -> None:
        super().__init__(prompt, max(tree.depth, 1), keep=keep, adapter=adapter)
        self._tree, self._next_chain = tree, 0
        self._path: tuple[int, ...] = ()
        self._nodes_seen = 0
        self._found: dict[tuple[int, tuple[int, ...]], float] = {}
        self._asked: dict[int, set[tuple[int, ...]]] = {}
        for step in (step for steps in tree.steps for step in steps):
            self._asked.setdefault(step.node, set()).add(step.ids)

    @property
    def tail(self) -> tuple[int, ...]:
        """The chain that is computed now, with what it follows."""
        return self._path

    def wants(self, count: int) -> int:
        """All of a chain's scores, and the last one of the prompt."""
        if self._next_chain:
            return count
        return super().wants(count)

    def receive(self, scores: Tensor) -> None:
        """Read what is asked of these nodes; then the next chain begins."""
        for row in scores:
            self._read(row, self._nodes_seen)
            self._nodes_seen += 1
        if self.remaining:
            return
        if self._next_chain == len(self._tree.chains):
            self.cache.truncate(len(self.prompt))
            self._path, self.ended = (), "stop"
            return
        chain = self._tree.chains[self._next_chain]
        self._next_chain += 1
        self.cache.truncate(len(self.prompt) + chain.start)
        self._path = (*self._path[: chain.start], *chain.tokens)

    def _read(self, row: Tensor, node: int) -> None:
        values = row.numpy().astype(np.float64)
        values -= values.max()
        total = np.log(np.exp(values).sum())
        for ids in self._asked.get(node, ()):
            self._found[node, ids] = float(np.log(np.exp(values[list(ids)]).sum()) - total)

    def ranking(self) -> Ranking:
        """The result, once it is done."""
        logprobs = tuple(tuple(self._found[s.node, s.ids] for s in steps) for steps in self._tree.steps)
        return Ranking(logprobs, len(self.prompt), self.cached_tokens)
