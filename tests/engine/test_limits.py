from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from chatglm3.engine.engine import Engine
from chatglm3.engine.params import SamplingParams
from chatglm3.engine.sequence import Request
from chatglm3.errors import ChatGLMError, ContextLengthError, SamplingError
from chatglm3.model.transformer import ChatGLMModel
from engine_requests import GREEDY, PROMPT, VOCABULARY, answer, in_threads
from tiny_model import greedy, tiny_config, tiny_model, tokens_computed


def test_the_context_is_checked_before_any_work(model: ChatGLMModel) -> None:
    engine = Engine(model, VOCABULARY, max_context=20)
    good = Request(PROMPT, GREEDY)
    too_long = Request(tuple(range(30)), SamplingParams())
    full = Request(tuple(range(20)), SamplingParams())
    too_much = Request(tuple(range(10)), SamplingParams(max_new_tokens=11))
    calls: list[tuple[Callable[[Request], Any], Request, str]] = []
    for bad, numbers in (
        (too_long, r"30 tokens and an answer takes at least 1, more than the context of 20"),
        (full, r"20 tokens and an answer takes at least 1, more than the context of 20"),
        (too_much, r"10 tokens and max_new_tokens is 11, more than the context of 20"),
    ):
        calls += [
            (lambda r: engine.generate([good, r]), bad, numbers),
            (lambda r: engine.stream(r), bad, numbers),
            (lambda r: engine.beams(r), bad, numbers),
        ]
    calls.append((lambda r: engine.score(r.prompt, [(1, 2), (3,)]), Request(tuple(range(19)), GREEDY), "19 tokens"))
    with tokens_computed(model) as counts:
        for call, request, numbers in calls:
            with pytest.raises(ContextLengthError, match=numbers):
                call(request)
    assert counts == []
    assert engine.cache_bytes == 0
    # One token fewer fits.
    assert len(answer(engine, Request(tuple(range(19)), SamplingParams()))) == 1
    assert len(answer(engine, Request(tuple(range(10)), SamplingParams(max_new_tokens=10)))) == 10


def test_the_context_is_never_longer_than_the_rotary_table() -> None:
    model = tiny_model(tiny_config(16, context=12))
    assert Engine(model, 16).max_context == 12
    for wrong in (0, -1, 13, 2.5, "8"):
        with pytest.raises(ContextLengthError, match="from 1 to this model's 12"):
            Engine(model, 16, max_context=wrong)  # type: ignore[arg-type]
    assert len(answer(Engine(model, 16), Request((1, 2), SamplingParams()))) == 10


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request((), GREEDY), "an empty prompt"),
        (Request((1, -1), GREEDY), "token id -1 is not in the vocabulary"),
        (Request((1, 264), GREEDY), r"token id 264 is not in the vocabulary \(0 to 263\)"),
        (Request((1,), SamplingParams(banned=(256,))), r"token id 256 is not in the vocabulary \(0 to 255\)"),
        (Request((1,), SamplingParams(banned=tuple(range(256)))), "leave at least one token"),
    ],
)
def test_bad_requests(engine: Engine, model: ChatGLMModel, request_: Request, message: str) -> None:
    with tokens_computed(model) as counts:
        for call in (
            lambda: engine.generate([Request(PROMPT, GREEDY), request_]),
            lambda: list(engine.stream(request_)),
        ):
            with pytest.raises(SamplingError, match=message):
                call()
    assert counts == []


def test_beams_cannot_stream(engine: Engine) -> None:
    with pytest.raises(SamplingError, match="beam search cannot stream"):
        engine.stream(Request(PROMPT, SamplingParams(num_beams=2)))


def test_score_refuses_ids_without_a_meaning(engine: Engine, model: ChatGLMModel) -> None:
    with tokens_computed(model) as counts, pytest.raises(SamplingError, match="token id 256 is not in the vocabulary"):
        engine.score(PROMPT, [(1, 2), (3, 256)])
    assert counts == []


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, Interrupted])
def test_an_interruption_leaves_nothing_behind(engine: Engine, model: ChatGLMModel, error: type[BaseException]) -> None:
    told: list[int] = []

    def stop(token: int) -> bool:
        told.append(token)
        if len(told) == 5:
            raise error
        return False

    rows = [PROMPT, (*PROMPT, 3), (8, 9)]
    interrupted = [Request(row, GREEDY, frozenset(), stop) for row in rows]
    for call in (lambda: engine.generate(interrupted), lambda: list(engine.stream(interrupted[0]))):
        told.clear()
        with pytest.raises(error):
            call()
        assert engine.core.load == (0, 0)
    again = engine.generate([Request(row, GREEDY) for row in rows])
    assert [list(g.token_ids) for g in again] == [greedy(model, row, 16, VOCABULARY) for row in rows]


@pytest.mark.parametrize("layer", [0, 1])
def test_an_interruption_inside_the_network_leaves_nothing_behind(
    engine: Engine, model: ChatGLMModel, layer: int
) -> None:
    """The first layers have written their keys and values already when the error comes."""
    rows = [PROMPT, (*PROMPT, 3), (8, 9)]

    def generate() -> list[list[int]]:
        return [list(g.token_ids) for g in engine.generate([Request(row, GREEDY) for row in rows])]

    for before in (0, 1, 2, 6):
        left = iter(range(before))

        def interrupt(*_: object, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt

        handle = model.blocks[layer].mlp.register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            generate()
        handle.remove()
        assert engine.core.load == (0, 0)
    assert generate() == [greedy(model, row, 16, VOCABULARY) for row in rows]


def test_caches_are_bounded(model: ChatGLMModel) -> None:
    engine = Engine(model, VOCABULARY, max_batch=3, kept_caches=2)
    config = model.config
    token = 2 * config.num_layers * config.multi_query_group_num * config.kv_channels * 4
    peak = 0

    def watch(_token: int) -> bool:
        nonlocal peak
        peak = max(peak, engine.cache_bytes)
        return False

    for i in range(6):
        engine.generate([Request((i, j), GREEDY, frozenset(), watch) for j in range(10)])
        assert engine.cache_bytes <= 2 * (2 + 16) * token
    assert 3 * (2 + 16) * token <= peak <= 5 * (2 + 16) * token


def test_nothing_is_kept_where_no_caches_are_wanted(model: ChatGLMModel) -> None:
    engine = Engine(model, VOCABULARY, kept_caches=0)
    engine.generate([Request(PROMPT, GREEDY), Request((*PROMPT, 4), GREEDY)])
    assert engine.cache_bytes == 0


def test_close_frees_everything_and_every_later_call_is_an_error() -> None:
    model = tiny_model(tiny_config(32))
    engine = Engine(model, 32)
    engine.generate([Request(PROMPT[:2], GREEDY)])
    stream = engine.stream(Request((1, 2, 3), GREEDY))
    next(stream)
    late = engine.stream(Request((1, 2, 3), GREEDY))
    weights = weakref.ref(model)
    assert engine.cache_bytes > 0
    del model
    engine.close()
    engine.close()
    gc.collect()
    assert weights() is None
    assert engine.cache_bytes == 0
    request = Request((1,), GREEDY)
    calls: list[Callable[[], Any]] = [
        lambda: engine.generate([request]),
        lambda: engine.stream(request),
        lambda: engine.beams(Request((1,), SamplingParams(num_beams=2))),
        lambda: engine.score((1,), [(2,)]),
        lambda: next(stream),
        lambda: next(late),
    ]
    for call in calls:
        with pytest.raises(ChatGLMError, match="this model is closed; load it again"):
            call()
    assert engine.cache_bytes == 0


def test_closing_ends_the_work_of_other_threads() -> None:
    """Answers so long that none of them is over before."""
    engine = Engine(tiny_model(tiny_config(VOCABULARY, context=20_000)), VOCABULARY)
    begun = threading.Event()

    def watch(_token: int) -> bool:
        begun.set()
        return False

    def close() -> None:
        begun.wait()
        engine.close()

    long = SamplingParams(temperature=0)
    results = in_threads(
        [
            lambda: engine.generate([Request(PROMPT, long, frozenset(), watch)]),
            lambda: list(engine.stream(Request(PROMPT, long))),
            lambda: engine.beams(Request(PROMPT, SamplingParams(num_beams=4))),
            close,
        ]
    )
    assert [type(result) for result in results] == [ChatGLMError, ChatGLMError, ChatGLMError, type(None)]
