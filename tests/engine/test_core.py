"""Many requests on one core: arrivals, cancellations, memory, turns."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatglm3.engine.engine import Engine
from chatglm3.engine.labels import LabelTree
from chatglm3.engine.params import SamplingParams
from chatglm3.engine.sequence import Generating, Generation, Request, RunningSequence, Scoring
from chatglm3.errors import ChatGLMError, ContextLengthError, DeviceError
from chatglm3.model.transformer import ChatGLMModel
from engine_requests import GREEDY, PROMPT, VOCABULARY, answer, in_threads, prompts
from tiny_model import greedy, tiny_config, tiny_model, tokens_computed

ROOM = 40


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    max_batch=st.integers(1, 6),
    chunk=st.integers(1, 12),
    caches=st.integers(2, 6),
)
def test_any_order_of_arrivals_and_cancellations_gives_the_tokens_of_one_by_one(
    model: ChatGLMModel, seed: int, max_batch: int, chunk: int, caches: int
) -> None:
    rng = random.Random(seed)
    engine = Engine(model, VOCABULARY, max_batch=max_batch, prefill_chunk=chunk)
    limit = caches * engine.core.network.cache_bytes(1, ROOM + 12)
    engine = Engine(model, VOCABULARY, max_batch=max_batch, prefill_chunk=chunk, cache_bytes=limit)
    core = engine.core
    rows = prompts(rng.randrange(1, 12), seed)
    waiting = [Generating(Request(row, GREEDY), rng.choice((1, 5, 12)), VOCABULARY) for row in rows]
    everybody, cancelled = list(waiting), set[Generating]()
    while waiting or core.load != (0, 0):
        for _ in range(rng.randrange(3)):
            if waiting:
                core.submit(waiting.pop())
        if rng.random() < 0.15:
            victim = rng.choice(everybody)
            if not victim.is_done:
                victim.cancel()
                cancelled.add(victim)
        core.step()
        assert engine.cache_bytes <= limit
    for row, sequence in zip(rows, everybody, strict=True):
        if sequence in cancelled:
            assert sequence.ended == "cancelled"
            assert sequence.output == greedy(model, row, len(sequence.output), VOCABULARY)
        else:
            assert sequence.output == greedy(model, row, sequence.room, VOCABULARY)
    engine.forget()
    assert engine.cache_bytes == 0


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), max_batch=st.integers(1, 5), chunk=st.integers(1, 12))
def test_labels_are_scored_as_each_alone(model: ChatGLMModel, seed: int, max_batch: int, chunk: int) -> None:
    """Over trees with shared beginnings, labels that begin others, and prompts beside them."""
    rng = random.Random(seed)
    labels = {tuple(rng.choices((1, 2, 3), k=rng.randrange(1, 5))) for _ in range(rng.randrange(2, 7))}
    ends = (7, 9)
    tree = LabelTree(sorted(labels), ends)
    rows = prompts(rng.randrange(1, 6), seed)
    engine = Engine(model, VOCABULARY, max_batch=max_batch, prefill_chunk=chunk)
    alone = Engine(model, VOCABULARY, kept_caches=0)
    for row, ranking in zip(rows, engine.rank(rows, tree), strict=True):
        for label, logprobs in zip(sorted(labels), ranking.logprobs, strict=True):
            expected = alone.score(row, [label])[0]
            assert list(logprobs[: len(label)]) == pytest.approx(expected, abs=1e-4)
            is_inner = any(other[: len(label)] == label and other != label for other in labels)
            assert len(logprobs) == len(label) + is_inner


def test_what_labels_share_is_computed_once(model: ChatGLMModel) -> None:
    engine = Engine(model, VOCABULARY, kept_caches=0)
    tree = LabelTree([(1, 2, 3), (1, 2, 4), (1, 5, 6), (8,)])
    with tokens_computed(model) as counts:
        engine.rank([PROMPT], tree)
    assert sum(counts) == len(PROMPT) + 3  # 1 2, and 5 behind the 1


def test_what_prompts_share_is_computed_once(model: ChatGLMModel) -> None:
    engine = Engine(model, VOCABULARY)
    shared = tuple(range(50))
    rows = [(*shared, 100 + i, 7) for i in range(20)]
    with tokens_computed(model) as counts:
        rankings = engine.rank(rows, LabelTree([(1,), (2,)]))
    assert sum(counts) == 50 + 20 * 2
    assert [r.cached_tokens for r in rankings] == [50] * 20


def new_engine(model: ChatGLMModel, requests: int, tokens: int, **options: Any) -> Engine:
    """An engine with memory for so many requests of so many tokens."""
    network = Engine(model, VOCABULARY).core.network
    return Engine(model, VOCABULARY, cache_bytes=requests * network.cache_bytes(1, tokens), **options)


def test_who_does_not_fit_waits_and_is_not_overtaken(model: ChatGLMModel) -> None:
    engine = new_engine(model, 2, 20)
    core, order = engine.core, list[int]()

    def request(i: int, tokens: int) -> Generating:
        def told(_token: int) -> bool:
            if i not in order:
                order.append(i)
            return False

        return Generating(Request((i, 1, 2, 3), GREEDY, frozenset(), told), tokens, VOCABULARY)

    sequences = [request(0, 16), request(1, 16), request(2, 30), request(3, 2)]
    for sequence in sequences:
        core.submit(sequence)
    core.step()
    assert core.load == (2, 2)
    while core.load != (0, 0):
        core.step()
        assert engine.cache_bytes <= 2 * core.network.cache_bytes(1, 20)
    assert order == [0, 1, 2, 3]  # the last one would have fitted long before
    assert [len(s.output) for s in sequences] == [16, 16, 30, 2]


def test_what_can_never_fit_is_an_error_that_says_so(model: ChatGLMModel) -> None:
    engine = new_engine(model, 1, 20)
    big, small = Request(tuple(range(30)), GREEDY), Request(PROMPT, GREEDY)
    with pytest.raises(
        DeviceError, match=r"^46 tokens need a cache of [\d,]+ bytes and [\d,]+ are allowed; .*cache_bytes="
    ):
        engine.generate([big])
    outcomes = engine.outcomes([small, big, small])
    assert isinstance(outcomes[1], DeviceError)
    assert [type(outcomes[0]), type(outcomes[2])] == [Generation, Generation]
    with pytest.raises(DeviceError, match="cache_bytes="):
        engine.beams(Request(PROMPT, SamplingParams(num_beams=2, max_new_tokens=16)))


def test_a_failure_is_that_requests_own(model: ChatGLMModel) -> None:
    engine = Engine(model, VOCABULARY, max_context=30)
    too_long = Request(tuple(range(40)), GREEDY)

    def broken(_token: int) -> bool:
        raise ChatGLMError("told too much")

    outcomes = engine.outcomes(
        [Request(PROMPT, GREEDY), too_long, Request(PROMPT, GREEDY, frozenset(), broken), Request((1, 2), GREEDY)]
    )
    assert [type(o) for o in outcomes] == [Generation, ContextLengthError, ChatGLMError, Generation]
    last = outcomes[3]
    assert isinstance(last, Generation)
    assert list(last.token_ids) == greedy(model, (1, 2), 16, VOCABULARY)
    ranked = engine.rank_outcomes([PROMPT, tuple(range(30))], LabelTree([(1,), (2,)]))
    assert isinstance(ranked[1], ContextLengthError)
    assert not isinstance(ranked[0], ChatGLMError)


def test_a_request_without_time_ends_with_what_it_has(model: ChatGLMModel) -> None:
    engine = Engine(model, VOCABULARY)
    none = engine.generate([Request(PROMPT, SamplingParams(temperature=0, max_time=0))])[0]
    assert (none.token_ids, none.finish_reason) == ((), "deadline")
    some = engine.generate([Request(PROMPT, SamplingParams(temperature=0, max_time=0.05))])[0]
    assert some.finish_reason in ("deadline", "length")
    assert list(some.token_ids) == greedy(model, PROMPT, len(some.token_ids), VOCABULARY)


def test_nobody_waits_for_ever_behind_short_prompts(model: ChatGLMModel) -> None:
    """New short prompts in every step, as many as fit: the long one is computed all the same."""
    core = Engine(model, VOCABULARY, prefill_chunk=16, max_batch=64).core
    long = Scoring(tuple(range(200)), LabelTree([(1,), (2,)]))
    core.submit(long)
    others: list[RunningSequence] = []
    for step in range(200 // 4 + 1):
        if long.is_done:
            break
        for i in range(4):
            others.append(Scoring((step, i, 3, 4), LabelTree([(1,), (2,)])))
            core.submit(others[-1])
        core.step()
    assert long.is_done


def test_a_short_prompt_goes_before_a_long_one(model: ChatGLMModel) -> None:
    core = Engine(model, VOCABULARY, prefill_chunk=16).core
    long, short = (Generating(Request(tuple(range(n)), GREEDY), 2, VOCABULARY) for n in (100, 9))
    core.submit(long)
    core.step()
    core.submit(short)
    core.step()
    assert len(short.output) == 1
    assert not long.output


def test_a_held_prefix_is_computed_once_whatever_comes_between(model: ChatGLMModel) -> None:
    engine = new_engine(model, 3, 60, kept_caches=1)
    ids = tuple(range(30))
    held = engine.hold(ids)
    for i in range(5):
        answer(engine, Request((100 + i, 7, 8), GREEDY))
    generation = engine.generate([Request((*ids, 9), GREEDY)])[0]
    assert generation.cached_tokens == 30
    assert list(generation.token_ids) == greedy(model, (*ids, 9), 16, VOCABULARY)
    engine.release(held)
    engine.forget()
    assert engine.cache_bytes == 0


def test_coroutines_share_the_steps(model: ChatGLMModel) -> None:
    engine = Engine(model, VOCABULARY)
    rows = prompts(10)

    async def stream(row: tuple[int, ...]) -> list[int]:
        return [event async for event in engine.astream(Request(row, GREEDY)) if isinstance(event, int)]

    async def everything() -> tuple[list[Generation], list[list[int]]]:
        generations = asyncio.gather(*(engine.agenerate(Request(row, GREEDY)) for row in rows))
        streams = asyncio.gather(*(stream(row) for row in rows))
        return list(await generations), list(await streams)

    with tokens_computed(model) as counts:
        generations, streams = asyncio.run(everything())
    expected = [greedy(model, row, 16, VOCABULARY) for row in rows]
    assert [list(g.token_ids) for g in generations] == expected
    assert streams == expected
    assert len(counts) < 20 * 16  # they ran together


def test_a_cancelled_task_ends_its_request_and_no_other(model: ChatGLMModel) -> None:
    engine = Engine(tiny_model(tiny_config(VOCABULARY, context=20_000)), VOCABULARY)
    begun = threading.Event()

    def told(_token: int) -> bool:
        begun.set()
        return False

    async def everything() -> Generation:
        endless = asyncio.create_task(
            engine.agenerate(Request(PROMPT, SamplingParams(temperature=0), frozenset(), told))
        )
        other = asyncio.create_task(engine.agenerate(Request(PROMPT, GREEDY)))
        await asyncio.to_thread(begun.wait)
        endless.cancel()
        with pytest.raises(asyncio.CancelledError):
            await endless
        return await other

    assert len(asyncio.run(everything()).token_ids) == 16
    assert engine.core.load == (0, 0)


def test_a_failure_reaches_the_coroutine(model: ChatGLMModel) -> None:
    engine = Engine(model, VOCABULARY, max_context=30)

    async def ask(prompt: tuple[int, ...]) -> Any:
        return await asyncio.gather(engine.agenerate(Request(prompt, GREEDY)), return_exceptions=True)

    assert isinstance(asyncio.run(ask(tuple(range(40))))[0], ContextLengthError)
    engine.close()
    assert "closed" in str(asyncio.run(ask(PROMPT))[0])


def test_threads_and_coroutines_together(model: ChatGLMModel) -> None:
    engine = Engine(model, VOCABULARY, max_batch=4)
    rows = prompts(6)
    tree = LabelTree([(1, 2), (3,)])
    expected = [greedy(model, row, 16, VOCABULARY) for row in rows]

    def gather() -> list[list[int]]:
        async def ask() -> list[Generation]:
            return list(await asyncio.gather(*(engine.agenerate(Request(row, GREEDY)) for row in rows)))

        return [list(g.token_ids) for g in asyncio.run(ask())]

    def hold() -> None:
        for row in rows:
            engine.release(engine.hold((*row, 1)))

    jobs: list[Callable[[], Any]] = [
        gather,
        gather,
        lambda: [answer(engine, Request(row, GREEDY)) for row in rows],
        lambda: [list(g.token_ids) for g in engine.generate([Request(row, GREEDY) for row in rows])],
        lambda: len(engine.rank(rows, tree)),
        hold,
    ]
    results = in_threads(jobs)
    assert results[:4] == [expected] * 4
    assert results[4:] == [len(rows), None]
    assert engine.core.load == (0, 0)


def test_the_counters_add_up(model: ChatGLMModel) -> None:
    engine = Engine(model, VOCABULARY)
    with tokens_computed(model) as counts:
        for i in range(3):
            engine.generate([Request((*PROMPT, i), GREEDY)])
    counters = engine.core.counters
    assert (counters.steps, counters.computed_tokens) == (len(counts), sum(counts))
    assert counters.reused_tokens == 2 * len(PROMPT)
    assert 0 < counters.network_seconds <= counters.seconds
