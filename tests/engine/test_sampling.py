from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from chatglm3.engine.engine import Engine
from chatglm3.engine.params import SamplingParams
from chatglm3.engine.sampling import Sampler, candidates, penalize_repetition
from chatglm3.engine.sequence import Request
from chatglm3.errors import SamplingError
from chatglm3.model.transformer import ChatGLMModel
from tiny_model import greedy, tiny_config, tiny_model

PROMPT = (5, 17, 200)
SCORES = torch.tensor([2.0, -1.0, 0.5, 3.0, -2.0])


def sampler(vocabulary: int = 5, stop_ids: tuple[int, ...] = (), **options: Any) -> Sampler:
    return Sampler(SamplingParams(**options), (), stop_ids, vocabulary)


def generated(engine: Engine, prompt: tuple[int, ...] = PROMPT, **options: Any) -> list[int]:
    return list(engine.generate([Request(prompt, SamplingParams(max_new_tokens=24, **options))])[0].token_ids)


def naive_candidates(scores: list[float], temperature: float, top_k: int, top_p: float) -> dict[int, float]:
    """The filters as their definitions say, on a list."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[: top_k or None]
    weights = [math.exp((scores[i] - scores[order[0]]) / temperature) for i in order]
    probabilities = [w / sum(weights) for w in weights]
    kept = 1
    while kept < len(order) and (top_p == 1 or sum(probabilities[:kept]) < top_p):
        kept += 1
    return {i: p / sum(probabilities[:kept]) for i, p in zip(order[:kept], probabilities, strict=False)}


@given(
    st.lists(st.integers(-400, 400), min_size=1, max_size=40, unique=True),
    st.sampled_from([0.05, 0.3, 0.8, 1.0, 2.5]),
    st.integers(0, 45),
    st.sampled_from([0.0, 0.1, 0.5, 0.81, 0.95, 1.0]),
)
def test_candidates_follow_the_definitions(scores: list[int], temperature: float, top_k: int, top_p: float) -> None:
    wide = [s / 100 for s in scores]
    probabilities, ids = candidates(torch.tensor(wide), temperature, top_k, top_p)
    expected = naive_candidates(wide, temperature, top_k, top_p)
    assert ids.tolist() == list(expected)
    assert probabilities.tolist() == pytest.approx(list(expected.values()), abs=1e-6)


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-10, 1e-3])
def test_no_temperature_is_too_small(temperature: float) -> None:
    probabilities, ids = candidates(SCORES, temperature, 0, 1.0)
    assert ids[0] == 3
    assert probabilities.tolist() == [1, 0, 0, 0, 0]


def test_repetition_divides_positive_and_multiplies_negative_scores() -> None:
    seen = torch.tensor([True, True, False, False, True])
    assert penalize_repetition(SCORES, seen, 2.0).tolist() == [1.0, -2.0, 0.5, 3.0, -4.0]
    assert penalize_repetition(SCORES, seen, 0.5).tolist() == [4.0, -0.5, 0.5, 3.0, -1.0]


def test_the_repetition_penalty_sees_the_prompt_and_the_answer() -> None:
    chooser = Sampler(SamplingParams(repetition_penalty=2.0), (0, 99), (), 5)  # 99 has no score here
    assert chooser.adjust(SCORES).tolist() == [1.0, -1.0, 0.5, 3.0, -2.0]
    chooser.observe(4)
    assert chooser.adjust(SCORES).tolist() == [1.0, -1.0, 0.5, 3.0, -4.0]


def test_presence_counts_once_and_frequency_each_time() -> None:
    chooser = Sampler(SamplingParams(presence_penalty=0.5, frequency_penalty=0.25), (0, 1), (), 5)
    assert torch.equal(chooser.adjust(SCORES), SCORES)  # the prompt does not count
    for token in (3, 3, 2):
        chooser.observe(token)
    assert chooser.adjust(SCORES).tolist() == [2.0, -1.0, 0.5 - 0.75, 3.0 - 1.0, -2.0]


def test_a_negative_penalty_favours_what_was_said() -> None:
    chooser = sampler(presence_penalty=-2.0)
    chooser.observe(0)
    assert chooser.adjust(SCORES).tolist() == [4.0, -1.0, 0.5, 3.0, -2.0]


def test_banned_ids_and_early_stops_cannot_be_chosen() -> None:
    chooser = sampler(stop_ids=(0, 77), banned=(3,), min_new_tokens=2, temperature=0)
    chosen = []
    for _ in range(3):
        chosen.append(chooser.choose(SCORES))
        chooser.observe(chosen[-1])
    assert chosen == [2, 2, 0]


def test_adjusting_does_not_change_the_scores_it_was_given() -> None:
    before = SCORES.clone()
    chooser = Sampler(
        SamplingParams(repetition_penalty=1.5, frequency_penalty=1.0, banned=(1,), min_new_tokens=1), (0,), (2,), 5
    )
    chooser.observe(3)
    chooser.choose(SCORES)
    assert torch.equal(SCORES, before)


def test_a_branch_does_not_touch_the_sampler_it_came_from() -> None:
    chooser = sampler(repetition_penalty=2.0, frequency_penalty=1.0, min_new_tokens=1, stop_ids=(0,))
    before = chooser.adjust(SCORES)
    twin = chooser.branch(3)
    assert torch.equal(chooser.adjust(SCORES), before)
    assert twin.adjust(SCORES).tolist() == [2.0, -1.0, 0.5, 3.0 / 2 - 1, -2.0]


def test_an_id_outside_the_vocabulary_cannot_be_banned() -> None:
    with pytest.raises(SamplingError, match=r"token id 5 is not in the vocabulary \(0 to 4\)"):
        sampler(banned=(5,))


def test_at_least_one_token_must_be_left() -> None:
    with pytest.raises(SamplingError, match="leave at least one token"):
        sampler(banned=(0, 1, 2), stop_ids=(3, 4))
    assert sampler(banned=(0, 1, 3), stop_ids=(4,), min_new_tokens=9).choose(SCORES) == 2


def chi_square(counts: Counter[int], expected: dict[int, float], draws: int) -> float:
    return sum((counts[i] - draws * p) ** 2 / (draws * p) for i, p in expected.items())


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.8, 50, 0.8), (1.7, 6, 1.0), (0.6, 0, 0.95)]
)
def test_draws_follow_the_distribution(temperature: float, top_k: int, top_p: float) -> None:
    scores = torch.randn(20, generator=torch.Generator().manual_seed(1))
    chooser = sampler(20, temperature=temperature, top_k=top_k, top_p=top_p, seed=5)
    draws = 6000
    counts = Counter(chooser.choose(scores) for _ in range(draws))
    expected = naive_candidates(scores.tolist(), temperature, top_k, top_p)
    assert set(counts) <= set(expected)
    freedom = len(expected) - 1
    # The value that a fair sampler stays below in 999 of 1000 seeds (Wilson and Hilferty's approximation).
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
    assert chi_square(counts, expected, draws) < limit


def test_temperature_0_is_the_most_probable_token_always(engine: Engine, model: ChatGLMModel) -> None:
    expected = greedy(model, PROMPT, 24, engine.vocab_size)
    assert len(set(expected)) > 10
    assert generated(engine, temperature=0) == expected


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0, "top_p": 0.1, "top_k": 3, "seed": 4},
        {"temperature": 2.0, "top_k": 1, "top_p": 1.0},
        {"temperature": 2.0, "top_k": 0, "top_p": 1e-6},
        {"temperature": 2.0, "top_k": 0, "top_p": 0},
        {"temperature": 1e-45, "top_k": 0, "top_p": 1.0},
        {"temperature": 0, "logprobs": 2},
        {"temperature": 0, "repetition_penalty": 1.0, "presence_penalty": 0.0},
    ],
    ids=str,
)
def test_other_ways_to_ask_for_greedy(engine: Engine, options: dict[str, Any]) -> None:
    assert generated(engine, **options) == generated(engine, temperature=0)


def test_a_seed_repeats_an_answer_and_another_seed_gives_another(engine: Engine) -> None:
    options: dict[str, Any] = {"temperature": 1.5, "top_k": 0, "top_p": 1.0}
    first = generated(engine, seed=7, **options)
    assert generated(engine, seed=7, **options) == first
    assert generated(engine, seed=8, **options) != first
    assert generated(engine, **options) != generated(engine, **options)


def test_the_seed_is_the_requests_own(engine: Engine) -> None:
    params = SamplingParams(temperature=1.5, top_p=1.0, max_new_tokens=12, seed=3)
    other = SamplingParams(temperature=1.5, top_p=1.0, max_new_tokens=20)
    alone = engine.generate([Request(PROMPT, params)])[0].token_ids
    requests = [Request(PROMPT, other), Request(PROMPT, params), Request((9,), other), Request(PROMPT, params)]
    together = engine.generate(requests)
    assert together[1].token_ids == together[3].token_ids == alone


def test_drawing_does_not_move_the_global_generator(engine: Engine) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    generated(engine, temperature=1.5)
    assert torch.equal(torch.rand(3), expected)


def test_ids_without_a_meaning_are_never_produced(engine: Engine, model: ChatGLMModel) -> None:
    logits = model(torch.tensor([PROMPT])).logits[0, -1]
    assert logits.argmax() >= engine.vocab_size  # they would win
    kinds: list[dict[str, Any]] = [{"temperature": 0}, {"temperature": 3.0, "top_k": 0, "top_p": 1.0}, {"num_beams": 3}]
    for options in kinds:
        requests = [Request((i, 40), SamplingParams(max_new_tokens=24, seed=i, **options)) for i in range(12)]
        produced = [i for g in engine.generate(requests) for i in g.token_ids]
        assert max(produced) < engine.vocab_size


def test_banned_ids_are_never_produced(engine: Engine) -> None:
    free = generated(engine, temperature=0)
    banned = tuple(set(free[::2]))
    for options in ({"temperature": 0}, {"temperature": 2.0, "top_k": 0, "seed": 1}, {"num_beams": 3}):
        assert not set(banned) & set(generated(engine, banned=banned, **options))


def test_min_new_tokens_holds_the_stop_ids_back(engine: Engine) -> None:
    free = generated(engine, temperature=0)
    stops = frozenset(free[3:6])
    early = engine.generate([Request(PROMPT, SamplingParams(temperature=0, max_new_tokens=24), stops)])[0]
    assert (list(early.token_ids), early.stop_id, early.finish_reason) == (free[:3], free[3], "stop")
    params = SamplingParams(temperature=0, max_new_tokens=24, min_new_tokens=10)
    late = engine.generate([Request(PROMPT, params, stops)])[0]
    assert len(late.token_ids) >= 10
    assert not stops & set(late.token_ids[:10])


def expected_logprobs(model: ChatGLMModel, ids: list[int], vocabulary: int) -> Tensor:
    logits: Tensor = model(torch.tensor([ids])).logits
    return logits[0, :, :vocabulary].log_softmax(-1)


def test_logprobs_are_the_networks_whatever_the_filters(engine: Engine, model: ChatGLMModel) -> None:
    params = SamplingParams(
        max_new_tokens=8, seed=1, top_k=5, repetition_penalty=1.4, banned=(9,), logprobs=3, temperature=1.3
    )
    generation = engine.generate([Request(PROMPT, params)])[0]
    table = expected_logprobs(model, [*PROMPT, *generation.token_ids], engine.vocab_size)[len(PROMPT) - 1 :]
    assert generation.logprobs is not None
    assert [entry.token_id for entry in generation.logprobs] == list(generation.token_ids)
    for entry, row in zip(generation.logprobs, table, strict=False):
        assert entry.logprob == pytest.approx(row[entry.token_id].item(), abs=1e-4)
        values, ids = row.topk(3)
        assert [i for i, _ in entry.top] == ids.tolist()
        assert [v for _, v in entry.top] == pytest.approx(values.tolist(), abs=1e-4)


def test_logprobs_sum_to_the_score(engine: Engine) -> None:
    params = SamplingParams(temperature=0, max_new_tokens=9, logprobs=0)
    generation = engine.generate([Request(PROMPT, params)])[0]
    assert generation.logprobs is not None
    assert all(entry.top == () for entry in generation.logprobs)
    scored = engine.score(PROMPT, [generation.token_ids])[0]
    assert [entry.logprob for entry in generation.logprobs] == pytest.approx(scored, abs=1e-4)


def test_the_stop_token_has_a_logprob_too(engine: Engine) -> None:
    free = generated(engine, temperature=0)
    params = SamplingParams(temperature=0, logprobs=1)
    generation = engine.generate([Request(PROMPT, params, frozenset(free[4:5]))])[0]
    assert generation.logprobs is not None
    assert [entry.token_id for entry in generation.logprobs] == free[:5]


def test_penalties_change_the_answer_as_their_formulas_say(engine: Engine, model: ChatGLMModel) -> None:
    """The engine against a plain loop that penalises by hand."""
    repetition, presence, frequency = 1.3, 0.7, 0.4
    ids, said = list(PROMPT), Counter[int]()
    for _ in range(24):
        logits = model(torch.tensor([ids])).logits[0, -1, : engine.vocab_size].tolist()
        for token in set(ids):
            logits[token] = logits[token] * repetition if logits[token] < 0 else logits[token] / repetition
        for token, count in said.items():
            logits[token] -= presence + frequency * count
        best = max(range(len(logits)), key=logits.__getitem__)
        ids.append(best)
        said[best] += 1
    penalties: dict[str, Any] = {
        "repetition_penalty": repetition,
        "presence_penalty": presence,
        "frequency_penalty": frequency,
    }
    answer = generated(engine, temperature=0, **penalties)
    assert answer == ids[len(PROMPT) :]
    assert answer != generated(engine, temperature=0)


def test_a_vocabulary_smaller_than_top_k() -> None:
    engine = Engine(tiny_model(tiny_config(4)), 3)
    params = SamplingParams(max_new_tokens=20, temperature=5.0, top_k=50, top_p=1.0, seed=0)
    assert set(engine.generate([Request((0,), params)])[0].token_ids) == {0, 1, 2}
