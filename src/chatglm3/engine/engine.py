"""The engine's fronts: requests in, results out, for any number of threads and coroutines, on one core."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from functools import partial
from typing import TypeVar

from torch import Tensor

from chatglm3.engine.adapters import NamedAdapters
from chatglm3.engine.beam import Beam
from chatglm3.engine.beams import BeamSearches
from chatglm3.engine.core import Core, Counters
from chatglm3.engine.fingerprint import fingerprint
from chatglm3.engine.labels import LabelTree
from chatglm3.engine.limits import Limits
from chatglm3.engine.network import Network
from chatglm3.engine.prefix import Entry, PrefixStore
from chatglm3.engine.sequence import (
    Generating,
    Generation,
    Ranking,
    Request,
    RunningSequence,
    Scoring,
)
from chatglm3.engine.turns import Turns
from chatglm3.engine.workspace import Workspace
from chatglm3.errors import ChatGLMError, SamplingError, attempt
from chatglm3.model.adapters import Adapter, acting
from chatglm3.model.memory import free_memory
from chatglm3.model.transformer import ChatGLMModel

S = TypeVar("S", bound=RunningSequence)
_CHUNK, _SMALL_CHUNK = 512, 64  # where a token takes a CPU long, a step must be short, or a short request waits long
_LARGE = 500_000_000  # bytes of weights
_CACHE_SHARE = 2  # one in so many free bytes is for caches


class Engine:
    """Generates, streams and scores token ids. Safe to call from several threads."""

    def __init__(
        self,
        model: ChatGLMModel,
        vocab_size: int,
        *,
        max_context: int | None = None,
        max_batch: int = 16,
        prefill_chunk: int | None = None,
        kept_caches: int = 4,
        cache_bytes: int | None = None,
    ) -> None:
        """`vocab_size` is the number of ids that mean something; logits beyond it are cut off.

        `max_context` bounds prompt and answer together (default and most: the model's `seq_length`); at most
        `max_batch` requests run at once, and a step takes at most `prefill_chunk` of their prompt tokens; `kept_caches`
        finished ones keep what they computed, for requests that begin alike. All caches together take at most
        `cache_bytes` (default: half of the memory that is free, and enough for one context); who does not fit waits.
        """
        self._network = Network(model, min(vocab_size, model.config.padded_vocab_size))
        self.max_context, self.vocab_size = model.config.context_limit(max_context), self._network.vocab_size
        limit = cache_bytes
        if limit is None:
            limit = max(free_memory(model.device) // _CACHE_SHARE, self._network.cache_bytes(1, self.max_context))
        self._store = PrefixStore(self._network.new_cache, self._network.cache_bytes, size=kept_caches, limit=limit)
        is_slow = model.device.type == "cpu" and sum(w.nbytes for w in model.state_dict().values()) > _LARGE
        chunk = prefill_chunk or (_SMALL_CHUNK if is_slow else _CHUNK)
        self.core = Core(self._network, self._store, max_batch=max_batch, chunk=chunk)
        self._turns = Turns(self.core)
        self.adapters = NamedAdapters(self._network, self._store, self._turns)
        self._workspace = Workspace(self._store, self.core, self._turns)
        self._beams = BeamSearches(self._network, self._workspace, self._turns)

    @property
    def model(self) -> ChatGLMModel:
        """The network; `ChatGLMError` once it is closed."""
        return self._network.model

    def generate(self, requests: Sequence[Request]) -> list[Generation]:
        """Run every request to its end; results in the order given. All prompts are checked before any work."""
        return self._generate(requests, patient=False)  # type: ignore[return-value]

    def outcomes(self, requests: Sequence[Request]) -> list[Generation | ChatGLMError]:
        """Like `generate`, but a request that fails has its error in its place, and the others go on."""
        return self._generate(requests, patient=True)

    def _generate(self, requests: Sequence[Request], *, patient: bool) -> list[Generation | ChatGLMError]:
        plain = [request for request in requests if request.params.num_beams == 1]
        for request in requests if not patient else ():
            self._room(request)
        beams = iter(
            [attempt(partial(self._best_beam, r), keep_errors=patient) for r in requests if r.params.num_beams > 1]
        )
        sequences = self._collect([partial(self._generating, request) for request in plain], patient)
        rest = iter([s if isinstance(s, ChatGLMError) else s.generation() for s in sequences])
        return [next(rest if request.params.num_beams == 1 else beams) for request in requests]

    def stream(self, request: Request) -> Generator[int | Generation, None, None]:
        """Yield each token id of the answer as it is chosen, and the `Generation` last.

        Closing the iterator stops the work; what was computed stays in the prefix store.
        """
        return self._stream(self._streaming(request))

    def _stream(self, sequence: Generating) -> Generator[int | Generation, None, None]:
        with self._turns.submitted([sequence]):
            while not sequence.is_told:
                self._turns.wait(lambda: sequence.has_news)
                yield from sequence.news()
        yield self._generation(sequence)

    async def agenerate(self, request: Request) -> Generation:
        """`generate` for one request; other tasks go on. Cancelling the task ends the request."""
        sequence = self._generating(request)
        with self._turns.submitted([sequence]):
            await self._turns.wait_async(lambda: sequence.is_done)
        return self._generation(sequence)

    async def astream(self, request: Request) -> AsyncGenerator[int | Generation, None]:
        """`stream`, with `async for`."""
        sequence = self._streaming(request)
        with self._turns.submitted([sequence]):
            while not sequence.is_told:
                await self._turns.wait_async(lambda: sequence.has_news)
                for token in sequence.news():
                    yield token
        yield self._generation(sequence)

    def score(
        self, prompt: Sequence[int], continuations: Sequence[Sequence[int]], adapter: str | None = None
    ) -> list[list[float]]:
        """Log-probability of each token of each continuation after `prompt`; what they share is computed once."""
        ranking = self.rank([prompt], LabelTree(continuations), adapter)[0]
        return [list(logprobs) for logprobs in ranking.logprobs]

    def rank(self, prompts: Sequence[Sequence[int]], tree: LabelTree, adapter: str | None = None) -> list[Ranking]:
        """Score every label of `tree` behind each prompt; what the prompts begin with is computed once."""
        return self._rank(prompts, tree, adapter, patient=False)  # type: ignore[return-value]

    def rank_outcomes(
        self, prompts: Sequence[Sequence[int]], tree: LabelTree, adapter: str | None = None
    ) -> list[Ranking | ChatGLMError]:
        """Like `rank`, but a prompt that fails has its error in its place, and the others go on."""
        return self._rank(prompts, tree, adapter, patient=True)

    def _rank(
        self, prompts: Sequence[Sequence[int]], tree: LabelTree, adapter: str | None, *, patient: bool
    ) -> list[Ranking | ChatGLMError]:
        keep, acts = len(prompts) == 1, self.adapters.find(adapter)
        makers = [partial(self._scoring, tuple(prompt), tree, keep=keep, adapter=acts) for prompt in prompts]
        return [s if isinstance(s, ChatGLMError) else s.ranking() for s in self._collect(makers, patient)]

    def _collect(self, makers: Sequence[Callable[[], S]], patient: bool) -> list[S | ChatGLMError]:
        """Make sequences, compute once what they begin with, run all to their end.

        A `ChatGLMError` takes the place of a sequence, or, without patience, ends everything.
        """
        made = [attempt(make, keep_errors=patient) for make in makers]
        sequences = [s for s in made if not isinstance(s, ChatGLMError)]
        for adapter in dict.fromkeys(s.adapter for s in sequences):
            self._workspace.compute_shared([s.prompt for s in sequences if s.adapter is adapter], adapter)
        with self._turns.submitted(sequences):
            self._turns.wait(
                lambda: all(s.is_done for s in sequences) or (not patient and any(s.error for s in sequences))
            )
        for sequence in sequences:
            attempt(sequence.raise_error, keep_errors=patient)
        return [s if isinstance(s, ChatGLMError) or not isinstance(s.error, ChatGLMError) else s.error for s in made]

    def beams(self, request: Request, results: int = 1) -> list[Beam]:
        """The best `results` answers of a beam search, best first."""
        return self._beams.search(request, self.adapters.find(request.adapter), self._room(request))[:results]

    def _best_beam(self, request: Request) -> Generation:
        return self._beams.best(request, self.adapters.find(request.adapter), self._room(request))

    def hold(self, ids: Sequence[int], adapter: str | None = None) -> Entry:
        """Compute `ids` and keep them for requests with `adapter`, whoever else needs memory, until `release`."""
        self._limits.room(ids, None)
        with self._workspace.computed(tuple(ids), self.adapters.find(adapter)) as prompt, self._turns.alone():
            self.core.give_up(prompt)
            return self._store.pin(prompt.prompt, prompt.cache, prompt.adapter)

    def restore(self, ids: Sequence[int], state: Sequence[Tensor], adapter: str | None = None) -> Entry:
        """Keep `ids` until `release`, with the keys and values of a cache's `state`."""
        acts = self.adapters.find(adapter)
        with self._workspace.rows(1, len(ids), acts) as cache, self._turns.alone():
            self._store.match(self.model)  # so that it belongs to the weights of now
            cache.restore(state)
            return self._store.pin(tuple(ids), cache, acts)

    def release(self, held: Entry) -> None:
        """Free what `hold` or `restore` kept."""
        with self._turns.alone():
            self._store.unpin(held)

    def forget(self) -> None:
        """Free what finished requests left, but for what is held."""
        with self._turns.alone():
            self._store.forget()

    def close(self) -> None:
        """Free the caches and let go of the model; any later call is an error."""
        self._turns.close()
        self.adapters.clear()
        self._store.clear()
        self.core.clear()
        self._network.close()

    @property
    def cache_bytes(self) -> int:
        """Bytes that caches hold now."""
        return self._store.nbytes

    def fingerprint(self, adapter: Adapter | None = None) -> str:
        """A short name for the weights, with those of `adapter`; the same in every process."""
        with self._turns.alone(), acting(adapter):
            return fingerprint(self.model)

    @property
    def counters(self) -> Counters:
        """What has been done so far."""
        return self.core.counters

    def _generating(self, request: Request) -> Generating:
        return Generating(request, self._room(request), self.vocab_size, self.adapters.find(request.adapter))

    def _streaming(self, request: Request) -> Generating:
        if request.params.num_beams > 1:
            raise SamplingError("beam search cannot stream; use num_beams=1 or a call that does not stream")
        return self._generating(request)

    def _generation(self, sequence: Generating) -> Generation:
        sequence.raise_error()
        return sequence.generation()

    def _scoring(self, prompt: tuple[int, ...], tree: LabelTree, *, keep: bool, adapter: Adapter | None) -> Scoring:
        self._limits.check_labels(prompt, tree)
        return Scoring(prompt, tree, keep=keep, adapter=adapter)

    @property
    def _limits(self) -> Limits:
        """What a request may hold; `ChatGLMError` once the engine is closed."""
        return Limits(self.max_context, self.vocab_size, self.model.config.padded_vocab_size)

    def _room(self, request: Request) -> int:
        return self._limits.room(request.prompt, request.params.max_new_tokens, request.params.banned)
