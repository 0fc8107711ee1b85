from __future__ import annotations

import gc
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatglm3.engine.engine import Engine
from chatglm3.engine.params import SamplingParams
from chatglm3.engine.sequence import Generation, Request
from chatglm3.errors import ChatGLMError, ContextLengthError, SamplingError
from chatglm3.model.transformer import ChatGLMModel
from tiny_model import greedy, tiny_config, tiny_model, tokens_computed

VOCABULARY = 256
PROMPT = (5, 17, 200)
GREEDY = SamplingParams(temperature=0, max_new_tokens=16)


def prompts(count: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Prompts of many lengths, some of which begin alike."""
    rng = random.Random(seed)
    stem = [rng.randrange(VOCABULARY) for _ in range(9)]
    rows = [[rng.randrange(VOCABULARY) for _ in range(rng.choice((1, 2, 7, 30)))] for _ in range(count)]
    return [(*stem[: rng.choice((0, 0, 4, 9))], *row) for row in rows]


def answer(engine: Engine, request: Request) -> list[int]:
    return list(engine.generate([request])[0].token_ids)


def tokens(stream: Any) -> list[int]:
    return [event for event in stream if isinstance(event, int)]


# What is generated


def test_the_tokens_are_those_of_a_plain_loop_without_a_cache(engine: Engine, model: ChatGLMModel) -> None:
    for prompt in prompts(6):
        generation = engine.generate([Request(prompt, GREEDY)])[0]
        assert list(generation.token_ids) == greedy(model, prompt, 16, VOCABULARY)
        assert (generation.finish_reason, generation.stop_id, generation.logprobs) == ("length", None, None)
        assert generation.prompt_tokens == len(prompt)


def test_a_batch_gives_the_tokens_of_one_by_one(engine: Engine, model: ChatGLMModel) -> None:
    rows = prompts(20)
    together = engine.generate([Request(row, GREEDY) for row in rows])
    assert [list(g.token_ids) for g in together] == [greedy(model, row, 16, VOCABULARY) for row in rows]


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), max_batch=st.integers(1, 5), prefill_chunk=st.integers(1, 12))
def test_rows_do_not_depend_on_who_runs_beside_them(
    model: ChatGLMModel, seed: int, max_batch: int, prefill_chunk: int
) -> None:
    """Different lengths, parameters, stop ids and predicates in one batch, at any batch and chunk size."""
    rng = random.Random(seed)

    def request(prompt: tuple[int, ...]) -> Request:
        params = SamplingParams(
            temperature=rng.choice((0, 0.9)),
            max_new_tokens=rng.choice((1, 3, 14)),
            repetition_penalty=rng.choice((1.0, 1.3)),
            frequency_penalty=rng.choice((0.0, 0.5)),
            min_new_tokens=rng.choice((0, 2)),
            num_beams=rng.choice((1, 1, 1, 2)),
            banned=tuple(rng.sample(range(VOCABULARY), rng.choice((0, 3)))),
            seed=rng.randrange(100),
        )
        letter = rng.randrange(VOCABULARY)
        return Request(prompt, params, frozenset(rng.sample(range(VOCABULARY), 12)), lambda token: token == letter)

    requests = [request(row) for row in prompts(rng.randrange(1, 8), seed)]
    plain = Engine(model, VOCABULARY, kept_caches=0)
    expected = [plain.generate([r])[0] for r in requests]
    engine = Engine(model, VOCABULARY, max_batch=max_batch, prefill_chunk=prefill_chunk)
    for _ in range(2):  # the second time with every prompt in the store
        together = engine.generate(requests)
        assert [(g.token_ids, g.finish_reason, g.stop_id) for g in together] == [
            (g.token_ids, g.finish_reason, g.stop_id) for g in expected
        ]


@pytest.mark.parametrize("chunk", [1, 2, 7, 300])
def test_a_long_prompt_is_prefilled_in_chunks(model: ChatGLMModel, chunk: int) -> None:
    prompt = tuple(random.Random(3).choices(range(VOCABULARY), k=300))
    engine = Engine(model, VOCABULARY, prefill_chunk=chunk, max_batch=1)
    with tokens_computed(model) as counts:
        result = answer(engine, Request(prompt, GREEDY))
    assert max(counts) == chunk
    assert sum(counts) == 300 + 15  # the last token of an answer is not fed
    assert result == greedy(model, prompt, 16, VOCABULARY)


def test_decoding_goes_on_beside_a_long_prefill(model: ChatGLMModel) -> None:
    engine = Engine(model, VOCABULARY, prefill_chunk=16)
    short = engine.start(Request(PROMPT, GREEDY))
    engine.step([short])
    long = engine.start(Request(tuple(range(100)), GREEDY))
    with tokens_computed(model) as counts:
        for decoded in range(2, 9):
            engine.step([short, long])
            assert len(short.output) == decoded
    assert counts == [16, 16, 16, 16, 16, 16, 11]  # 15 of the long prompt in each step, then its last 10
    assert short.output == greedy(model, PROMPT, 8, VOCABULARY)
    assert long.output == greedy(model, tuple(range(100)), 1, VOCABULARY)
    engine.finish(short)
    engine.finish(long)


def test_a_stop_id_ends_the_answer_and_is_not_part_of_it(engine: Engine, model: ChatGLMModel) -> None:
    free = greedy(model, PROMPT, 16, VOCABULARY)
    generation = engine.generate([Request(PROMPT, GREEDY, frozenset({free[5], 1000}))])[0]
    assert list(generation.token_ids) == free[:5]
    assert (generation.finish_reason, generation.stop_id) == ("stop", free[5])


def test_the_last_token_is_not_lost(engine: Engine, model: ChatGLMModel) -> None:
    free = greedy(model, PROMPT, 16, VOCABULARY)
    for length in (1, 2, 16):
        params = SamplingParams(temperature=0, max_new_tokens=length)
        generation = engine.generate([Request(PROMPT, params)])[0]
        assert (list(generation.token_ids), generation.finish_reason) == (free[:length], "length")
    # A stop id as the last token allowed is a stop.
    params = SamplingParams(temperature=0, max_new_tokens=3)
    generation = engine.generate([Request(PROMPT, params, frozenset({free[2]}))])[0]
    assert (list(generation.token_ids), generation.finish_reason) == (free[:2], "stop")


def test_a_predicate_is_told_every_token_once_and_can_end_the_answer(engine: Engine, model: ChatGLMModel) -> None:
    told: list[int] = []

    def fourth(token: int) -> bool:
        told.append(token)
        return len(told) == 4

    generation = engine.generate([Request(PROMPT, GREEDY, frozenset(), fourth)])[0]
    assert told == list(generation.token_ids) == greedy(model, PROMPT, 4, VOCABULARY)
    assert generation.finish_reason == "stop"


def test_without_a_limit_the_answer_fills_the_context(model: ChatGLMModel) -> None:
    engine = Engine(model, VOCABULARY, max_context=20)
    generation = engine.generate([Request(PROMPT, SamplingParams(temperature=0))])[0]
    assert list(generation.token_ids) == greedy(model, PROMPT, 17, VOCABULARY)
    assert generation.finish_reason == "length"


def test_no_requests_no_results(engine: Engine) -> None:
    assert engine.generate([]) == []


# Streams


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


def in_threads(jobs: list[Callable[[], Any]]) -> list[Any]:
    results: list[Any] = [None] * len(jobs)
    barrier = threading.Barrier(len(jobs))

    def run(i: int) -> None:
        barrier.wait()
        try:
            results[i] = jobs[i]()
        except BaseException as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


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


# What cannot be done


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
            (lambda r: engine.start(r), bad, numbers),
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
        assert engine._running == []
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
        assert engine._running == []
    assert generate() == [greedy(model, row, 16, VOCABULARY) for row in rows]


# Memory


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
        lambda: engine.start(request),
        lambda: engine.beams(Request((1,), SamplingParams(num_beams=2))),
        lambda: engine.score((1,), [(2,)]),
        lambda: next(stream),
        lambda: next(late),
    ]
    for call in calls:
        with pytest.raises(ChatGLMError, match="this model is closed; load it again"):
            call()
    assert engine.cache_bytes == 0


def test_closing_ends_the_work_of_other_threads(model: ChatGLMModel) -> None:
    engine = Engine(model, VOCABULARY)
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


# Prefixes that the network owns


def test_a_p_tuning_prefix_goes_through_the_engine() -> None:
    model = tiny_model(tiny_config(64, pre_seq_len=5))
    plain = tiny_model(tiny_config(64))
    engine = Engine(model, 60, prefill_chunk=4, max_batch=4)
    rows = [(1, 2, 3), (1, 2, 3, 4, 5, 6, 7, 8, 9), (50,), (1, 2, 3, 9)]
    expected = [greedy(model, row, 16, 60) for row in rows]
    assert expected != [greedy(plain, row, 16, 60) for row in rows]
    for _ in range(2):
        assert [list(g.token_ids) for g in engine.generate([Request(row, GREEDY) for row in rows])] == expected
    beams = engine.beams(Request(rows[1], SamplingParams(num_beams=2, max_new_tokens=3)))
    assert beams[0].score * 3 == pytest.approx(sum(engine.score(rows[1], [beams[0].token_ids])[0]), abs=1e-4)
    table = model(torch.tensor([[*rows[0], 7, 8]])).logits[0, :, :60].log_softmax(-1)
    assert engine.score(rows[0], [(7, 8)])[0] == pytest.approx([table[2, 7].item(), table[3, 8].item()], abs=1e-4)


# Scores


def test_scores_are_the_networks_log_probabilities(engine: Engine, model: ChatGLMModel) -> None:
    tails = [(3, 4, 5), (), (9,), (3, 4, 6), (3, 4, 5)]
    scores = engine.score(PROMPT, tails)
    for tail, score in zip(tails, scores, strict=True):
        table = model(torch.tensor([[*PROMPT, *tail]])).logits[0, len(PROMPT) - 1 :, :VOCABULARY].log_softmax(-1)
        assert score == pytest.approx([table[i, token].item() for i, token in enumerate(tail)], abs=1e-4)
    assert engine.score(PROMPT, []) == []


def test_a_score_computes_its_prompt_once(engine: Engine, model: ChatGLMModel) -> None:
    prompt = tuple(range(100))
    with tokens_computed(model) as counts:
        engine.score(prompt, [(3, 4, 5), (6,), (7, 8)])
    assert counts == [100, 2, 1]
    with tokens_computed(model) as counts:
        engine.score(prompt, [(6,)])
    assert counts == [1]


def test_a_score_leaves_the_kept_prompt_as_it_was(engine: Engine, model: ChatGLMModel) -> None:
    engine.score(PROMPT, [(3, 4, 5)])
    for tail in ((3, 4, 9), (3,)):
        row = (*PROMPT, *tail)
        assert answer(engine, Request(row, GREEDY)) == greedy(model, row, 16, VOCABULARY)
