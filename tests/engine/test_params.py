from __future__ import annotations

import dataclasses
import math
from typing import Any, get_type_hints

import pytest

from chatglm3.engine.params import SamplingOptions, SamplingParams
from chatglm3.errors import SamplingError


def test_the_defaults_are_what_the_official_chat_does() -> None:
    params = SamplingParams()
    assert (params.temperature, params.top_p, params.top_k) == (0.8, 0.8, 50)
    assert (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) == (1.0, 0.0, 0.0)
    assert (params.num_beams, params.seed, params.max_new_tokens) == (1, None, None)


def test_the_keyword_arguments_are_the_fields() -> None:
    assert list(get_type_hints(SamplingOptions)) == [f.name for f in dataclasses.fields(SamplingParams)]


def test_parameters_are_frozen() -> None:
    params = SamplingParams()
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.temperature = 0.0  # type: ignore[misc]


def test_lists_become_tuples_and_one_string_becomes_a_tuple_of_one() -> None:
    stops = ["。", "\n"]
    params = SamplingParams.of({"stop": stops, "banned": [3, 4]})
    stops.append("!")
    assert params.stop == ("。", "\n")
    assert params.banned == (3, 4)
    assert SamplingParams(stop="end").stop == ("end",)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
        {"temperature": 5e-324},
        {"top_p": 0},
        {"top_p": 1},
        {"top_k": 0},
        {"top_k": 10**30},
        {"seed": 2**64 - 1},
        {"seed": -(2**63)},
        {"logprobs": 0},
        {"min_new_tokens": 5, "max_new_tokens": 5},
        {"num_beams": 3, "length_penalty": -1.0, "early_stopping": True},
    ],
)
def test_the_borders_are_allowed(options: dict[str, Any]) -> None:
    params = SamplingParams.of(options)
    assert all(getattr(params, name) == value for name, value in options.items())


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", [-0.1, math.nan, math.inf, -math.inf, "0.8", None, True, 10**400]),
        ("top_p", [-0.1, 1.01, math.nan, math.inf, "1", None, False]),
        ("top_k", [-1, 1.5, math.nan, "3", None, True]),
        ("repetition_penalty", [0, -1, math.nan, math.inf, None, True]),
        ("presence_penalty", [math.nan, math.inf, -math.inf, 101, None]),
        ("frequency_penalty", [math.nan, math.inf, -101, "1"]),
        ("max_new_tokens", [0, -1, 1.0, math.nan, "9", True]),
        ("min_new_tokens", [-1, 0.5, None, True]),
        ("num_beams", [0, -1, 65, 2.0, None, True]),
        ("length_penalty", [math.nan, math.inf, "1", None]),
        ("early_stopping", [1, 0, "never", None]),
        ("seed", [2**64, -(2**63) - 1, 1.0, math.nan, "1", True]),
        ("logprobs", [-1, 1001, 0.5, True]),
        ("stop", ["", [""], ["a", ""], [1], [b"a"], None, 5]),
        ("banned", [[-1], ["a"], [1.0], [True], None, 5, "ab"]),
    ],
)
def test_a_wrong_value_is_an_error_that_names_the_parameter(name: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(SamplingError, match=name) as caught:
            SamplingParams.of({name: value})
        assert "\n" not in str(caught.value)


def test_a_whole_number_may_be_very_large() -> None:
    assert SamplingParams(max_new_tokens=10**400).max_new_tokens == 10**400


@pytest.mark.parametrize(
    ("name", "near"),
    [("temprature", "temperature"), ("max_tokens", "max_new_tokens"), ("topk", "top_k"), ("num_beam", "num_beams")],
)
def test_an_unknown_name_is_answered_with_the_nearest_one(name: str, near: str) -> None:
    with pytest.raises(SamplingError, match=rf"unknown sampling parameter '{name}'; did you mean {near}\?"):
        SamplingParams.of({name: 1})


def test_a_name_that_is_near_to_none_is_answered_with_all() -> None:
    with pytest.raises(SamplingError, match=r"'xyzzy'; known: max_new_tokens, temperature, .*logprobs"):
        SamplingParams.of({"xyzzy": 1})


def test_beam_search_reports_no_logprobs() -> None:
    with pytest.raises(SamplingError, match="beam search has neither logprobs nor max_time"):
        SamplingParams(num_beams=2, logprobs=1)
