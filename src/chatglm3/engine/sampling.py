"""From logits to the next token: small pure functions on fp32 scores `[vocabulary]`, and a request's own state."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from chatglm3.engine.constraint import Constraint
from chatglm3.engine.params import SamplingParams
from chatglm3.errors import SamplingError


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probability of a produced token (before temperature and filters) and of the most probable ones."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


def penalize_repetition(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Make every token that is true in `seen` [vocabulary] less likely."""
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def candidates(scores: Tensor, temperature: float, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """Probabilities and ids that remain after temperature, top-k and top-p, the most probable first.

    The best token always remains.
    """
    keep = min(top_k, scores.shape[-1]) if top_k else scores.shape[-1]
    values, ids = torch.topk(scores, keep)
    # Differences in fp64: no temperature above 0 is too small.
    probabilities = ((values - values[0]).double() / temperature).softmax(-1)
    if top_p < 1:
        # A token stays when those before it do not reach top_p yet.
        before = probabilities.cumsum(-1) - probabilities
        count = max(int((before < top_p).sum()), 1)
        probabilities, ids = probabilities[:count] / probabilities[:count].sum(), ids[:count]
    return probabilities, ids


class Sampler:
    """Chooses the tokens of one request."""

    def __init__(
        self,
        params: SamplingParams,
        prompt: Sequence[int],
        stop_ids: Iterable[int],
        vocab_size: int,
        constraint: Constraint | None = None,
    ) -> None:
        """`stop_ids` are held back for the first `min_new_tokens`; only what `constraint` allows is chosen."""
        self._params, self._constraint = params, constraint
        self._generator = torch.Generator()
        self._generator.manual_seed(random.getrandbits(63) if params.seed is None else params.seed)
        require_known(params.banned, vocab_size)
        stops = {i for i in stop_ids if i < vocab_size}
        if len({*params.banned, *stops}) == vocab_size:
            raise SamplingError("banned and stop ids are the whole vocabulary; leave at least one token to choose")
        self._banned = torch.tensor(params.banned, dtype=torch.long)
        self._stops = torch.tensor(sorted(stops), dtype=torch.long)
        self._produced = 0
        self._seen = self._counts = None
        if params.repetition_penalty != 1:
            self._seen = torch.zeros(vocab_size, dtype=torch.bool)
            self._seen[[i for i in prompt if i < vocab_size]] = True
        if params.presence_penalty or params.frequency_penalty:
            self._counts = torch.zeros(vocab_size)
        self.takes_argmax = (
            params.temperature == 0
            and params.logprobs is None
            and not params.banned
            and not params.min_new_tokens
            and constraint is None
            and self._seen is None
            and self._counts is None
        )
        """True when the answer is the plain maximum, so that a batch can take it for all rows at once."""

    def adjust(self, scores: Tensor) -> Tensor:
        """Scores after penalties and bans."""
        p = self._params
        if self._seen is not None:
            scores = penalize_repetition(scores, self._seen, p.repetition_penalty)
        if self._counts is not None:
            scores = scores - p.frequency_penalty * self._counts - p.presence_penalty * self._counts.clamp(max=1)
        if len(self._banned):
            scores = scores.index_fill(0, self._banned, -torch.inf)
        if self._produced < p.min_new_tokens:
            scores = scores.index_fill(0, self._stops, -torch.inf)
        if self._constraint is not None:
            scores = scores.masked_fill(~torch.from_numpy(self._constraint.allowed()), -torch.inf)
        return scores

    def choose(self, scores: Tensor) -> int:
        """The next token id for raw `scores` [vocabulary]."""
        adjusted, p = self.adjust(scores), self._params
        if p.temperature == 0:
            return int(adjusted.argmax())
        probabilities, ids = candidates(adjusted, p.temperature, p.top_k, p.top_p)
        return int(ids[torch.multinomial(probabilities, 1, generator=self._generator)])

    def observe(self, token_id: int) -> None:
        """Count a token that was produced."""
        self._produced += 1
        if self._constraint is not None:
            self._constraint.accept(token_id)
        if self._seen is not None:
            self._seen[token_id] = True
        if self._counts is not None:
            self._counts[token_id] += 1

    def branch(self, token_id: int) -> Sampler:
        """A copy that has also observed `token_id` (beam search)."""
        twin = copy(self)
        twin._seen = None if self._seen is None else self._seen.clone()
        twin._counts = None if self._counts is None else self._counts.clone()
        twin.observe(token_id)
        return twin

    def logprobs(self, scores: Tensor, token_id: int) -> TokenLogprobs | None:
        """The report that `logprobs` asks for."""
        if self._params.logprobs is None:
            return None
        logprobs = scores.log_softmax(-1)
        values, ids = logprobs.topk(min(self._params.logprobs, len(logprobs)))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
        return TokenLogprobs(token_id, float(logprobs[token_id]), top)


def require_known(ids: Iterable[int], vocab_size: int) -> None:
    """`SamplingError` for an id that is not in the vocabulary."""
    for i in ids:
        if not 0 <= i < vocab_size:
            raise SamplingError(f"token id {i} is not in the vocabulary (0 to {vocab_size - 1})")
