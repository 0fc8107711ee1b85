from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatglm3.engine.engine import Engine
from chatglm3.engine.params import SamplingParams
from chatglm3.engine.sequence import Generating, Request
from chatglm3.model.transformer import ChatGLMModel
from engine_requests import GREEDY, PROMPT, VOCABULARY, answer, prompts
from tiny_model import greedy, tiny_config, tiny_model, tokens_computed


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
    core = Engine(model, VOCABULARY, prefill_chunk=16).core
    short = Generating(Request(PROMPT, GREEDY), 16, VOCABULARY)
    core.submit(short)
    core.step()
    long = Generating(Request(tuple(range(100)), GREEDY), 16, VOCABULARY)
    core.submit(long)
    with tokens_computed(model) as counts:
        for decoded in range(2, 9):
            core.step()
            assert len(short.output) == decoded
    assert counts == [17, 17, 17, 17, 17, 17, 5]  # 16 of the long prompt in each step, then its last 4
    assert short.output == greedy(model, PROMPT, 8, VOCABULARY)
    assert long.output == greedy(model, tuple(range(100)), 1, VOCABULARY)


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


def test_scores_are_the_networks_log_probabilities(engine: Engine, model: ChatGLMModel) -> None:
    tails = [(3, 4, 5), (), (9,), (3, 4, 6), (3, 4, 5)]
    scores = engine.score(PROMPT, tails)
    for tail, score in zip(tails, scores, strict=True):
        table = model(torch.tensor([[*PROMPT, *tail]])).logits[0, len(PROMPT) - 1 :, :VOCABULARY].log_softmax(-1)
        assert score == pytest.approx([table[i, token].item() for i, token in enumerate(tail)], abs=1e-4)
    assert engine.score(PROMPT, []) == []


def test_a_score_computes_its_prompt_once(model: ChatGLMModel) -> None:
    engine = Engine(model, VOCABULARY, prefill_chunk=100)
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
