from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch

from chatglm3.engine.engine import Engine
from chatglm3.engine.params import SamplingParams
from chatglm3.engine.sequence import Request
from chatglm3.errors import SamplingError
from chatglm3.model.transformer import ChatGLMModel
from tiny_model import tiny_config, tiny_model

VOCABULARY = 5
PROMPT = (1, 0, 3)
LENGTH = 3


@pytest.fixture(scope="module")
def small() -> ChatGLMModel:
    """Five ids with a meaning and two without."""
    return tiny_model(tiny_config(VOCABULARY + 2, context=32), seed=4)


def answers(stops: frozenset[int]) -> Iterator[tuple[int, ...]]:
    """Every answer of three tokens, and every shorter one that ends with a stop id."""
    for length in range(1, LENGTH + 1):
        for ids in product(range(VOCABULARY), repeat=length):
            if stops.isdisjoint(ids[:-1]) and (length == LENGTH or ids[-1] in stops):
                yield ids


def logprob(model: ChatGLMModel, ids: tuple[int, ...]) -> float:
    table = model(torch.tensor([[*PROMPT, *ids]])).logits[0, len(PROMPT) - 1 :, :VOCABULARY].log_softmax(-1)
    return float(sum(table[i, token].item() for i, token in enumerate(ids)))


@pytest.mark.parametrize("length_penalty", [1.0, 0.0, 2.5, -1.0])
@pytest.mark.parametrize("stops", [frozenset(), frozenset({2}), frozenset({0, 4})], ids=str)
def test_with_enough_beams_it_finds_what_trying_every_answer_finds(
    small: ChatGLMModel, stops: frozenset[int], length_penalty: float
) -> None:
    beams = 60  # more than there are unfinished answers of two tokens
    params = SamplingParams(num_beams=beams, max_new_tokens=LENGTH, length_penalty=length_penalty)
    found = Engine(small, VOCABULARY).beams(Request(PROMPT, params, stops), beams)
    scored = sorted(((logprob(small, ids) / len(ids) ** length_penalty, ids) for ids in answers(stops)), reverse=True)
    got = [(*beam.token_ids, *([] if beam.stop_id is None else [beam.stop_id])) for beam in found]
    assert got == [ids for _, ids in scored[: len(got)]]
    assert [beam.score for beam in found] == pytest.approx([s for s, _ in scored[: len(got)]], abs=1e-4)
    assert len(got) == min(beams, len(scored))


def test_more_beams_than_answers(small: ChatGLMModel) -> None:
    """Two answers only, of one token each: nothing that was never alive is given back."""
    params = SamplingParams(num_beams=8, max_new_tokens=1, banned=(0, 1, 2))
    found = Engine(small, VOCABULARY).beams(Request(PROMPT, params), 8)
    assert sorted(beam.token_ids for beam in found) == [(3,), (4,)]


def test_early_stopping_is_content_with_the_first_finished_beams(small: ChatGLMModel) -> None:
    stops = frozenset({2, 4})
    options: dict[str, Any] = {"num_beams": 2, "max_new_tokens": 12, "length_penalty": 3.0}
    patient = Engine(small, VOCABULARY).beams(Request(PROMPT, SamplingParams(**options), stops), 2)
    hasty_params = SamplingParams(**options, early_stopping=True)
    hasty = Engine(small, VOCABULARY).beams(Request(PROMPT, hasty_params, stops), 2)
    assert max(len(b.token_ids) for b in hasty) < max(len(b.token_ids) for b in patient)
    assert patient[0].score > hasty[0].score


def test_early_stopping_does_not_count_beams_that_were_never_alive(small: ChatGLMModel) -> None:
    """At the first token only one of eight beams is alive."""
    params = SamplingParams(num_beams=8, max_new_tokens=5, early_stopping=True, min_new_tokens=3)
    found = Engine(small, VOCABULARY).beams(Request(PROMPT, params, frozenset({2, 4})), 8)
    assert len(found) == 8
    assert all(beam.score > -float("inf") for beam in found)
    assert all(len(beam.token_ids) >= 3 for beam in found)


def test_it_is_deterministic_whatever_the_sampling_parameters(engine: Engine) -> None:
    plain = engine.beams(Request((5, 6), SamplingParams(num_beams=4, max_new_tokens=10)), 4)
    others: dict[str, Any] = {"temperature": 3.0, "top_k": 2, "top_p": 0.1, "seed": 9}
    again = engine.beams(Request((5, 6), SamplingParams(num_beams=4, max_new_tokens=10, **others)), 4)
    assert [b.token_ids for b in again] == [b.token_ids for b in plain]
    assert [b.score for b in plain] == sorted((b.score for b in plain), reverse=True)


def test_a_score_is_the_mean_log_probability(engine: Engine) -> None:
    for beam in engine.beams(Request((5, 6), SamplingParams(num_beams=4, max_new_tokens=10)), 4):
        scored = engine.score((5, 6), [beam.token_ids])[0]
        assert beam.score == pytest.approx(sum(scored) / 10, abs=1e-4)


def test_penalties_and_bans_hold_in_every_beam(engine: Engine) -> None:
    request = Request((5, 6), SamplingParams(num_beams=3, max_new_tokens=12, presence_penalty=50.0, banned=(7, 8)))
    for beam in engine.beams(request, 3):
        assert len(set(beam.token_ids)) == 12
        assert not {7, 8} & set(beam.token_ids)


def test_generate_gives_the_best_beam(engine: Engine) -> None:
    params = SamplingParams(num_beams=3, max_new_tokens=12)
    greedy_params = SamplingParams(temperature=0, max_new_tokens=12)
    best = engine.beams(Request((5, 6), params))[0]
    first, second, third = engine.generate(
        [
            Request((5, 6), greedy_params),
            Request((5, 6), params),
            Request((5, 6), params, frozenset(best.token_ids[4:5])),
        ]
    )
    assert first.token_ids == engine.generate([Request((5, 6), greedy_params)])[0].token_ids
    assert (second.token_ids, second.finish_reason, second.stop_id) == (best.token_ids, "length", None)
    assert third.finish_reason in ("stop", "length")
    assert (third.stop_id is not None) == (third.finish_reason == "stop")


def test_a_predicate_cuts_the_best_beam(engine: Engine) -> None:
    params = SamplingParams(num_beams=3, max_new_tokens=12)
    best = engine.beams(Request((5, 6), params))[0].token_ids
    told: list[int] = []

    def fifth(token: int) -> bool:
        told.append(token)
        return len(told) == 5

    generation = engine.generate([Request((5, 6), params, frozenset(), fifth)])[0]
    assert generation.token_ids == best[:5] == tuple(told)
    assert (generation.finish_reason, generation.stop_id) == ("stop", None)


def test_one_beam_is_greedy_and_streams(engine: Engine) -> None:
    with pytest.raises(SamplingError, match="num_beams=1"):
        engine.stream(Request((5, 6), SamplingParams(num_beams=2)))
    beams = engine.beams(Request((5, 6), SamplingParams(num_beams=1, max_new_tokens=12)))
    greedy = engine.generate([Request((5, 6), SamplingParams(temperature=0, max_new_tokens=12))])[0]
    assert beams[0].token_ids == greedy.token_ids
