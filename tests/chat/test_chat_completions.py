from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_lessons import (
    GREEDY,
    GREETING,
    POEM,
    POEM_END,
)
from chatglm3.chat import ChatGLM
from chatglm3.prompt import completion_prompt, message_ids


def test_a_completion(glm: ChatGLM) -> None:
    completion = glm.complete(POEM, **GREEDY)
    assert (completion.text, completion.finish_reason) == (POEM_END, "stop")
    assert completion.usage.prompt_tokens == len(completion_prompt(glm.tokenizer, POEM))
    assert completion.usage.completion_tokens == len(glm.tokenizer.encode_continuation(POEM_END)) + 1
    short = glm.complete(POEM, temperature=0, max_new_tokens=2)
    assert (short.finish_reason, short.usage.completion_tokens) == ("length", 2)
    assert POEM_END.startswith(short.text)


def test_a_list_of_completions(glm: ChatGLM) -> None:
    prompts = [POEM, "你好", "", "Hello", POEM]
    together = glm.complete(prompts, temperature=0, max_new_tokens=12)
    alone = [glm.complete(p, temperature=0, max_new_tokens=12) for p in prompts]
    assert [c.text for c in together] == [c.text for c in alone]
    assert together[0].text == POEM_END[: len(together[0].text)]
    assert glm.complete([]) == []


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), prompt=st.sampled_from(["", "你好", "a\n"]), limit=st.sampled_from([1, 2, 30]))
def test_a_completion_is_the_decoded_rest(taught: ChatGLM, seed: int, prompt: str, limit: int) -> None:
    t = taught.tokenizer
    options: dict[str, Any] = {"seed": seed, "temperature": 1.5, "top_p": 1.0, "top_k": 0, "max_new_tokens": limit}
    completion = taught.complete(prompt, logprobs=0, **options)
    assert completion.logprobs is not None
    ids = [entry.token_id for entry in completion.logprobs]
    ids = ids[:-1] if completion.finish_reason == "stop" else ids
    text = [i for i in ids if i < t.n_pieces]  # control ids have no text
    start = completion_prompt(t, prompt)
    assert completion.text == t.decode([*start, *text])[len(t.decode(start)) :]
    without = taught.complete(prompt, **options)
    assert (without.text, without.logprobs) == (completion.text, None)


@pytest.mark.parametrize("stop", ["天", "今天晴", "，2", "。"])
def test_a_completion_stops_at_a_stop_string(glm: ChatGLM, stop: str) -> None:
    completion = glm.complete(POEM, stop=stop, **GREEDY)
    assert (completion.text, completion.finish_reason) == (POEM_END[: POEM_END.find(stop)], "stop")


def test_scores(glm: ChatGLM) -> None:
    completion = glm.complete(POEM, temperature=0, logprobs=1, max_new_tokens=8)
    assert completion.logprobs is not None
    expected = sum(entry.logprob for entry in completion.logprobs)
    good, bad, empty = glm.score(POEM, [completion.text, "不好不好", ""])
    assert good == pytest.approx(expected, abs=1e-3)
    assert bad < good
    assert empty == 0.0
    assert glm.score(POEM, []) == []


def test_logprobs_of_a_reply(glm: ChatGLM) -> None:
    reply = glm.chat("你好", logprobs=2, **GREEDY)
    assert reply.logprobs is not None
    assert len(reply.logprobs) == reply.usage.completion_tokens
    assert [entry.token_id for entry in reply.logprobs] == [
        *message_ids(glm.tokenizer, GREETING)[1:],
        glm.tokenizer.user_id,
    ]
    assert all(entry.top[0] == (entry.token_id, entry.logprob) for entry in reply.logprobs)


def test_beam_search_in_a_conversation(glm: ChatGLM) -> None:
    reply = glm.chat("你好", num_beams=3, max_new_tokens=60)
    assert (reply.text, reply.finish_reason) == (GREETING.content, "stop")
    stopped = glm.chat("你好", num_beams=3, stop="高兴", max_new_tokens=60)
    assert (stopped.text, stopped.finish_reason) == ("你好，很", "stop")
