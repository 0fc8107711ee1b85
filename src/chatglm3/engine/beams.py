"""Beam searches on the engine's network, one at a time, beside the requests that run."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch
from torch import Tensor

from chatglm3.engine.beam import Beam, beam_search
from chatglm3.engine.network import Network
from chatglm3.engine.sampling import Sampler
from chatglm3.engine.sequence import EndReason, Generation, Request
from chatglm3.engine.turns import Turns
from chatglm3.engine.workspace import Workspace
from chatglm3.errors import SamplingError
from chatglm3.model.adapters import Adapter, acting


class BeamSearches:
    """Each search computes its prompt once and has a row of a cache for every beam."""

    def __init__(self, network: Network, workspace: Workspace, turns: Turns) -> None:
        self._network, self._workspace, self._turns = network, workspace, turns
        self._one = threading.Lock()  # two of them could each hold the memory that the other one waits for

    @torch.inference_mode()
    def search(self, request: Request, adapter: Adapter | None, room: int) -> list[Beam]:
        """The best answers of at most `room` tokens, best first."""
        if request.constraint is not None:
            raise SamplingError("beam search takes no choices or JSON schema; use num_beams=1")
        n, network = request.params.num_beams, self._network
        with (
            self._one,
            self._workspace.computed(request.prompt, adapter) as prompt,
            self._workspace.rows(n, len(request.prompt) + room, adapter, beside=1) as cache,
        ):
            cache.copy_from(prompt.cache, len(request.prompt))

            def next_logits(rows: Sequence[Sequence[int]], parents: Tensor) -> Tensor:
                with self._turns.alone(), acting(adapter):
                    cache.reorder(parents)
                    tokens = torch.tensor([[row[-1]] for row in rows], device=network.model.device)
                    hidden = network.model.hidden(tokens, torch.full_like(tokens, cache.tokens), [(cache, 1)])
                    return network.checked_scores(hidden[:, -1], lambda row: [*request.prompt, *rows[row]])

            samplers = [Sampler(request.params, request.prompt, request.stop_ids, network.vocab_size) for _ in range(n)]
            return beam_search(prompt.scores[0], next_logits, request, samplers, room)

    def best(self, request: Request, adapter: Adapter | None, room: int) -> Generation:
        """The best answer, cut where the request's predicate says so."""
        best = self.search(request, adapter, room)[0]
        ids = list(best.token_ids)
        reason: EndReason = "length" if best.stop_id is None else "stop"
        if request.should_stop is not None:
            for i, token in enumerate(ids):
                if request.should_stop(token):
                    ids, reason = ids[: i + 1], "stop"
                    break
        return Generation(tuple(ids), reason, best.stop_id, len(request.prompt), 0, None)
