"""The loop: start requests, run the network on what is pending, choose tokens, finish.

One step takes the pending tokens of every running request, a prompt's chunk or one decoded token, lays them end to end
and runs the network once. Each request has its own cache, so its tokens do not depend on who runs beside it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from chatglm3.engine.beam import Beam, beam_search
from chatglm3.engine.numerics import first_bad_module
from chatglm3.engine.params import SamplingParams
from chatglm3.engine.prefix import PrefixStore, common_prefix
from chatglm3.engine.sampling import Sampler, require_known
from chatglm3.engine.sequence import EndReason, Generation, Request, RunningSequence
from chatglm3.errors import ChatGLMError, ContextLengthError, NumericsError, SamplingError
from chatglm3.kernels.native import convert
from chatglm3.model.cache import KVCache
from chatglm3.model.transformer import ChatGLMModel


class Engine:
    """Generates, streams and scores token ids. Safe to call from several threads."""

    def __init__(
        self,
        model: ChatGLMModel,
        vocab_size: int,
        *,
        max_context: int | None = None,
        max_batch: int = 16,
        prefill_chunk: int = 512,
        kept_caches: int = 4,
    ) -> None:
        """`vocab_size` is the number of ids that mean something; logits beyond it are cut off.

        `max_context` bounds prompt and answer together (default and most: the model's `seq_length`); at most
        `max_batch` requests run at once; `kept_caches` finished ones keep what they computed, for requests that
        begin alike.
        """
        self._model: ChatGLMModel | None = model
        self.vocab_size = min(vocab_size, model.config.padded_vocab_size)
        self.max_context = model.config.context_limit(max_context)
        self._max_batch, self._prefill_chunk = max_batch, max(prefill_chunk, max_batch)
        self._store = PrefixStore(kept_caches)
        self._running: list[RunningSequence] = []
        self._lock = threading.RLock()
        self._devices = [block.device for block in model.blocks]

    @property
    def model(self) -> ChatGLMModel:
        """The network; `ChatGLMError` once it is closed."""
        model = self._model
        if model is None:
            raise ChatGLMError("this model is closed; load it again")
        return model

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Run every request to its end; results in the order given. All prompts are checked before any work."""
        for request in requests:
            self._room(request)
        results = {i: self._best_beam(r) for i, r in enumerate(requests) if r.params.num_beams > 1}
        waiting = deque((i, r) for i, r in enumerate(requests) if r.params.num_beams == 1)
        running: dict[int, RunningSequence] = {}
        self._prefill_shared([request.prompt for _, request in waiting])
        try:
            while waiting or running:
                while waiting and len(running) < self._max_batch:
                    index, request = waiting.popleft()
                    running[index] = self.start(request)
                self.step(list(running.values()))
                for index, sequence in list(running.items()):
                    if sequence.finish_reason is not None:
                        results[index] = self.finish(running.pop(index))
        finally:
            for sequence in running.values():
                self.finish(sequence)
        return [results[i] for i in range(len(requests))]

    def stream(self, request: Request) -> Generator[int | Generation, None, None]:
        """Yield each token id of the answer as it is chosen, and the `Generation` last.

        Closing the iterator stops the work; what was computed stays in the prefix store.
        """
        if request.params.num_beams > 1:
            raise SamplingError("beam search cannot stream; use num_beams=1 or a call that does not stream")
        self._room(request)
        return self._stream(request)

    def _stream(self, request: Request) -> Generator[int | Generation, None, None]:
        with self._admitted(request) as sequence:
            sent = 0
            while sequence.finish_reason is None:
                self.step([sequence])
                yield from sequence.output[sent:]
                sent = len(sequence.output)
        yield sequence.generation()

    @torch.inference_mode()
    def score(self, prompt: Sequence[int], continuations: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of each token of each continuation after `prompt`; the prompt is computed once."""
        for continuation in continuations:
            require_known(continuation, self.vocab_size)
        params = SamplingParams(max_new_tokens=max((len(c) for c in continuations), default=1) or 1)
        with self._admitted(Request(tuple(prompt), params)) as sequence:
            last = self._prefill(sequence)
            return [self._score_one(sequence, last, c) for c in continuations]

    def _score_one(self, sequence: RunningSequence, last: Tensor, continuation: Sequence[int]) -> list[float]:
        logits, cache = last, sequence.cache
        if len(continuation) > 1:
            with self._lock:
                hidden = self._forward([(cache, continuation[:-1])])
                cache.truncate(len(sequence.request.prompt))
                logits = torch.cat((last, self._logits(hidden, lambda _: [*sequence.token_ids, *continuation])))
        logprobs = logits[: len(continuation)].log_softmax(-1)
        ids = torch.tensor(continuation, dtype=torch.long)[:, None]
        picked: list[float] = logprobs.gather(1, ids)[:, 0].tolist()
        return picked

    @torch.inference_mode()
    def beams(self, request: Request, results: int = 1) -> list[Beam]:
        """The best `results` answers of a beam search, best first."""
        room = self._room(request)
        with self._admitted(request) as sequence:
            last = self._prefill(sequence)
            n = request.params.num_beams
            cache = self._new_cache(n, len(request.prompt) + room)
            cache.copy_from(sequence.cache, len(request.prompt))

            def next_logits(rows: Sequence[Sequence[int]], parents: Tensor) -> Tensor:
                with self._lock:
                    cache.reorder(parents)
                    tokens = torch.tensor([[row[-1]] for row in rows], device=self.model.device)
                    hidden = self.model.hidden(tokens, torch.full_like(tokens, cache.tokens), [(cache, 1)])
                    return self._logits(hidden[:, -1], lambda row: [*request.prompt, *rows[row]])

            samplers = [Sampler(request.params, request.prompt, request.stop_ids, self.vocab_size) for _ in range(n)]
            return beam_search(last[0], next_logits, request, samplers, room)[:results]

    def _best_beam(self, request: Request) -> Generation:
        best = self.beams(request)[0]
        ids = list(best.token_ids)
        reason: EndReason = "length" if best.stop_id is None else "stop"
        if request.should_stop is not None:
            for i, token in enumerate(ids):
                if request.should_stop(token):
                    ids, reason = ids[: i + 1], "stop"
                    break
        return Generation(tuple(ids), reason, best.stop_id, len(request.prompt), 0, None)

    @torch.inference_mode()
    def start(self, request: Request) -> RunningSequence:
        """Admit a request: check the context, find the longest prefix that is computed already."""
        with self._lock:
            room = self._room(request)
            self._store.match(self.model)
            prompt = request.prompt
            sampler = Sampler(request.params, prompt, request.stop_ids, self.vocab_size)
            cache, shared = self._reuse(prompt, len(prompt) + room)
            sequence = RunningSequence(request, cache, sampler, room, shared)
            self._running.append(sequence)
            return sequence

    def step(self, sequences: Sequence[RunningSequence]) -> None:
        """Run the network once on what is pending, at most `prefill_chunk` tokens, and choose tokens."""
        with self._lock, torch.inference_mode():
            parts, ready, budget = [], [], self._prefill_chunk
            for sequence in sorted(sequences, key=lambda s: s.remaining > 1):
                tokens = sequence.pending(budget)
                if not tokens:
                    break
                budget -= len(tokens)
                parts.append((sequence.cache, tokens))
                if len(tokens) == sequence.remaining:
                    ready.append((sequence, self._prefill_chunk - budget - 1))
            hidden = self._forward(parts)
            if ready:
                chosen = [sequence for sequence, _ in ready]
                ends = [end for _, end in ready]
                last = hidden if len(ends) == len(hidden) else hidden[ends]
                self._choose(chosen, self._next_logits(last, chosen))

    def _choose(self, sequences: Sequence[RunningSequence], logits: Tensor) -> None:
        greedy: list[int] = logits.numpy().argmax(-1).tolist()
        for sequence, scores, best in zip(sequences, logits, greedy, strict=True):
            token = best if sequence.sampler.takes_argmax else sequence.sampler.choose(scores)
            sequence.accept(token, sequence.sampler.logprobs(scores, token))

    def finish(self, sequence: RunningSequence) -> Generation:
        """Take a request out; its cache is kept for the next one that begins alike."""
        with self._lock:
            if sequence in self._running:
                self._running.remove(sequence)
                self._store.put(sequence.computed_ids, sequence.cache)
            return sequence.generation()

    @contextmanager
    def _admitted(self, request: Request) -> Iterator[RunningSequence]:
        """A started request that is taken out again whatever happens."""
        sequence = self.start(request)
        try:
            yield sequence
        finally:
            self.finish(sequence)

    def close(self) -> None:
        """Free the caches and let go of the model; any later call is an error."""
        with self._lock:
            self._store.clear()
            self._running.clear()
            self._model = None

    @property
    def cache_bytes(self) -> int:
        """Bytes that caches hold now."""
        return self._store.nbytes + sum(s.cache.nbytes for s in self._running)

    def _room(self, request: Request) -> int:
        """How many tokens may be generated; `ContextLengthError` if the request does not fit."""
        require_known(request.prompt, self.model.config.padded_vocab_size)
        require_known(request.params.banned, self.vocab_size)
        prompt, wanted = len(request.prompt), request.params.max_new_tokens
        if not prompt:
            raise SamplingError("an empty prompt cannot be continued; give at least one token")
        room = self.max_context - prompt
        if room < (wanted or 1):
            asked = f"max_new_tokens is {wanted}" if wanted else "an answer takes at least 1"
            raise ContextLengthError(
                f"the prompt has {prompt} tokens and {asked}, more than the context of {self.max_context}; "
                "shorten the history or ask for fewer tokens"
            )
        return wanted or room

    def _prefill_shared(self, prompts: Sequence[Sequence[int]]) -> None:
        """Compute what all prompts begin with, once, so that each of them finds it in the store."""
        if len(prompts) < 2:
            return
        shared = min(common_prefix(prompts[0], prompt) for prompt in prompts[1:])
        if shared > 1:
            with self._admitted(Request(tuple(prompts[0][:shared]), SamplingParams(max_new_tokens=1))) as sequence:
                self._prefill(sequence)

    def _prefill(self, sequence: RunningSequence) -> Tensor:
        """Bring the whole prompt into the cache; returns the logits [1, vocabulary] behind its last token."""
        while True:
            with self._lock, torch.inference_mode():
                hidden = self._forward([(sequence.cache, sequence.pending(self._prefill_chunk))])
                if not sequence.remaining:
                    return self._next_logits(hidden[-1:], [sequence])

    def _reuse(self, prompt: Sequence[int], capacity: int) -> tuple[KVCache, int]:
        """A cache for `prompt` and how many of its tokens are in it; at least the last token is left to compute."""
        found, shared = self._store.find(prompt[:-1], [(s.computed_ids, s.cache) for s in self._running])
        if found is not None and shared == found.tokens and found.capacity >= capacity and self._store.take(found):
            return found, shared
        cache = self._new_cache(1, capacity)
        if found is not None:
            cache.copy_from(found, shared)
        return cache, shared

    def _new_cache(self, batch: int, capacity: int) -> KVCache:
        prefix = self.model.prefix()
        return KVCache(self.model.config, batch, capacity, self.model.dtype, self._devices, prefix)

    def _forward(self, parts: Sequence[tuple[KVCache, Sequence[int]]]) -> Tensor:
        """Hidden states `[tokens, h]` of all parts, end to end."""
        ids = [token for _, tokens in parts for token in tokens]
        positions = [i for cache, tokens in parts for i in range(cache.tokens, cache.tokens + len(tokens))]
        both = torch.tensor([[ids], [positions]], device=self.model.device)
        segments = [(cache, len(tokens)) for cache, tokens in parts]
        return self.model.hidden(both[0], both[1], segments)[0]

    def _next_logits(self, hidden: Tensor, sequences: Sequence[RunningSequence]) -> Tensor:
        """Scores behind the last token of each sequence; keys and values that gave bad ones are not kept."""
        try:
            return self._logits(hidden, lambda row: sequences[row].token_ids)
        except NumericsError:
            for sequence in sequences:
                sequence.cache.truncate(0)
            raise

    def _logits(self, hidden: Tensor, context: Callable[[int], Sequence[int]]) -> Tensor:
        """fp32 scores `[n, vocab_size]` on the CPU; `context(row)`, the tokens up to it, serves the diagnosis."""
        logits = convert(self.model.logits(hidden)[..., : self.vocab_size], torch.float32).cpu()
        with np.errstate(over="ignore", invalid="ignore"):
            total = logits.numpy().sum()
        if not np.isfinite(total):  # a sum of finite scores may overflow, so look again
            finite = torch.isfinite(logits).all(-1)
            if not finite.all():
                raise NumericsError(first_bad_module(self.model, context(int(finite.int().argmin()))))
        return logits
