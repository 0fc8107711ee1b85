"""Beam search, with the scores and stopping rules of the library the official code runs on.

A beam's score is the sum of its log-probabilities, the stop token included, over (new tokens ** length_penalty).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from chatglm3.engine.params import SamplingParams
from chatglm3.engine.sampling import Sampler
from chatglm3.engine.sequence import Request


@dataclass(frozen=True)
class Beam:
    """One result: its tokens without the stop id, and its score."""

    token_ids: tuple[int, ...]
    stop_id: int | None
    score: float


@dataclass
class _Finished:
    """The best finished beams so far, at most `num_beams`."""

    params: SamplingParams
    beams: list[Beam] = field(default_factory=list)

    def add(self, tokens: Sequence[int], stop_id: int | None, logprob: float) -> None:
        if logprob == -math.inf:
            return  # a row that was never alive, or a token that is held back
        length = len(tokens) + (stop_id is not None)
        self.beams.append(Beam(tuple(tokens), stop_id, logprob / length**self.params.length_penalty))
        self.beams.sort(key=lambda beam: -beam.score)
        del self.beams[self.params.num_beams :]

    def done(self, best_logprob: float, length: int) -> bool:
        """No running beam can do better (or early stopping asks no more)."""
        if len(self.beams) < self.params.num_beams:
            return False
        attainable = best_logprob / length**self.params.length_penalty
        return self.params.early_stopping or self.beams[-1].score >= attainable


def beam_search(
    first_logits: Tensor,
    next_logits: Callable[[Sequence[Sequence[int]], Tensor], Tensor],
    request: Request,
    samplers: list[Sampler],
    max_new_tokens: int,
) -> list[Beam]:
    """Finished beams, best first.

    `first_logits` [vocabulary] follow the prompt; `next_logits(rows, parents)` [beams, vocabulary] follow the
    answers `rows`, whose tokens but the last are those of the rows `parents` before; samplers penalise and ban.
    """
    params, stop_ids = request.params, request.stop_ids
    n, wanted = params.num_beams, params.num_beams * max(2, 1 + len(stop_ids))
    finished = _Finished(params)
    rows: list[list[int]] = [[] for _ in range(n)]
    sums = torch.full((n,), -torch.inf)
    sums[0] = 0.0  # all beams begin alike: only one of them may branch first
    logits = first_logits.expand(n, -1)
    for length in range(1, max_new_tokens + 1):
        adjusted = torch.stack([s.adjust(row) for s, row in zip(samplers, logits, strict=True)])
        scores = adjusted.log_softmax(-1) + sums[:, None]
        values, flat = scores.flatten().topk(min(wanted, scores.numel()))
        chosen: list[tuple[float, int, int]] = []
        for rank, (value, index) in enumerate(zip(values.tolist(), flat.tolist(), strict=True)):
            parent, token = divmod(index, scores.shape[1])
            if token not in stop_ids:
                chosen.append((value, parent, token))
            elif rank < n:
                finished.add(rows[parent], token, value)
            if len(chosen) == n:
                break
        rows = [[*rows[parent], token] for _, parent, token in chosen]
        sums = torch.tensor([value for value, _, _ in chosen])
        if finished.done(values[0].item(), length) or length == max_new_tokens:
            break
        samplers = [samplers[parent].branch(token) for _, parent, token in chosen]
        parents = torch.tensor([parent for _, parent, _ in chosen])
        logits = next_logits(rows, parents)
    else:
        raise AssertionError("unreachable: max_new_tokens is at least 1")
    if not finished.done(values[0].item(), length):
        for row, value in zip(rows, sums.tolist(), strict=True):
            finished.add(row, None, value)
    return finished.beams
