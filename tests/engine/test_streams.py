from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest

from chatglm3.engine.engine import Engine
from chatglm3.engine.params import SamplingParams
from chatglm3.engine.sequence import Generation, Request
from chatglm3.model.transformer import ChatGLMModel
from engine_requests import GREEDY, PROMPT, VOCABULARY, answer, in_threads, prompts
from tiny_model import greedy, tokens_computed


def tokens(stream: Any) -> list[int]:
    return [event for event in stream if isinstance(event, int)]


def test_a_stream_yields_the_tokens_and_then_the_generation(engine: Engine, model: ChatGLMModel) -> None:
    *ids, last = engine.stream(Request(PROMPT, GREEDY))
    assert ids == greedy(model, PROMPT, 16, VOCABULARY)
    assert isinstance(last, Generation)
    assert list(last.token_ids) == ids


def test_a_stream_computes_no_more_than_what_was_asked_for(engine: Engine, model: ChatGLMModel) -> None:
    with tokens_computed(model) as counts:
        stream = engine.stream(Request(PROMPT, GREEDY))
        assert counts == []
        for _ in range(3):
            next(stream)
        assert counts == [3, 1, 1]


def test_closing_a_stream_stops_the_work_and_keeps_what_was_computed(engine: Engine, model: ChatGLMModel) -> None:
    stream = engine.stream(Request(PROMPT, GREEDY))
    first = [next(stream) for _ in range(6)]
    stream.close()
    with tokens_computed(model) as counts:
        assert list(stream) == []
        longer = (*PROMPT, *[t for t in first if isinstance(t, int)], 9)
        generation = engine.generate([Request(longer, GREEDY)])[0]
    assert generation.cached_tokens == len(PROMPT) + 5
    assert counts[0] == 2
    assert list(generation.token_ids) == greedy(model, longer, 16, VOCABULARY)


def test_an_abandoned_stream_holds_no_memory(engine: Engine) -> None:
    stream = engine.stream(Request(PROMPT, GREEDY))
    next(stream)
    running = engine.cache_bytes
    del stream
    gc.collect()
    assert engine.cache_bytes == running  # it went to the store
    engine.generate([Request((i, i), GREEDY) for i in range(8)])
    assert engine.cache_bytes <= 4 * running


def test_streams_can_take_turns_in_one_thread(engine: Engine, model: ChatGLMModel) -> None:
    rows = [(*PROMPT, 1), (*PROMPT, 1, 2), (7,), PROMPT]
    streams = [engine.stream(Request(row, GREEDY)) for row in rows]
    taken: list[list[int]] = [[] for _ in rows]
    for step in range(16):
        for i, stream in enumerate(streams):
            event = next(stream)
            assert isinstance(event, int), step
            taken[i].append(event)
    assert taken == [greedy(model, row, 16, VOCABULARY) for row in rows]


def test_threads_do_not_disturb_each_other(engine: Engine, model: ChatGLMModel) -> None:
    rows = [(*PROMPT, *row) for row in prompts(5)]
    params = SamplingParams(temperature=0, max_new_tokens=40)
    jobs: list[Callable[[], Any]] = [
        lambda: tokens(engine.stream(Request(rows[0], params))),
        lambda: tokens(engine.stream(Request(rows[1], params))),
        lambda: answer(engine, Request(rows[2], params)),
        lambda: list(engine.generate([Request(rows[3], params), Request(rows[4], params)])[1].token_ids),
        lambda: engine.score(rows[0], [(1, 2, 3), (4,)]),
        lambda: engine.beams(Request(rows[0], SamplingParams(num_beams=3, max_new_tokens=12))),
    ]
    alone = [job() for job in jobs]
    assert alone[0] == greedy(model, rows[0], 40, VOCABULARY)
    for _ in range(3):
        together = in_threads(jobs)
        assert together[:4] == alone[:4]
        assert together[4] == [pytest.approx(row, abs=1e-4) for row in alone[4]]
        assert [beam.token_ids for beam in together[5]] == [beam.token_ids for beam in alone[5]]
