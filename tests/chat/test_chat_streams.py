from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import zip_longest
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_lessons import (
    ASK,
    CALL,
    EMOJI,
    GREEDY,
    GREETING,
    HELLO,
    POEM,
    POEM_END,
    SYSTEM,
    last_reply,
    text_of,
)
from chatglm3.chat import ChatGLM, Chunk
from chatglm3.errors import ContextLengthError, MessageError, SamplingError
from chatglm3.prompt import message_ids
from tiny_model import tokens_computed


@settings(max_examples=25)
@given(seed=st.integers(0, 10**6), temperature=st.sampled_from([0.7, 1.5, 3.0]), limit=st.sampled_from([1, 7, 40]))
def test_chunks_together_are_the_text_of_the_reply(taught: ChatGLM, seed: int, temperature: float, limit: int) -> None:
    options: dict[str, Any] = {"seed": seed, "temperature": temperature, "top_p": 1.0, "top_k": 0}
    chunks = list(taught.stream_chat("你好", max_new_tokens=limit, **options))
    reply = taught.chat("你好", max_new_tokens=limit, **options)
    assert text_of(chunks) == reply.text
    streamed = last_reply(chunks)
    assert (streamed.text, streamed.history, streamed.finish_reason) == (reply.text, reply.history, reply.finish_reason)
    assert all(chunk.text for chunk in chunks[:-1])


def test_hot_answers_are_of_every_kind(taught: ChatGLM) -> None:
    """What the tests with random seeds rely on."""
    options: dict[str, Any] = {"temperature": 1.5, "top_p": 1.0, "top_k": 0, "max_new_tokens": 40}
    answers = [list(taught.stream_chat("你好", seed=seed, **options)) for seed in range(25)]
    assert len({text_of(chunks) for chunks in answers}) > 15
    assert sum(len(chunks) > 5 for chunks in answers) > 5
    assert {last_reply(chunks).finish_reason for chunks in answers} >= {"stop", "length"}
    assert any("\ufffd" in text_of(chunks) for chunks in answers)
    assert any(len(last_reply(chunks).messages) > 1 for chunks in answers)


def test_a_character_never_appears_half(glm: ChatGLM) -> None:
    """Each of these is several byte pieces."""
    answer = message_ids(glm.tokenizer, EMOJI)
    assert sum(glm.tokenizer.byte_value(i) is not None for i in answer) >= 9  # 8 bytes and the newline
    chunks = list(glm.stream_chat("你好", [HELLO, GREETING], **GREEDY))
    assert text_of(chunks) == EMOJI.content
    assert [chunk.text for chunk in chunks[:2]] == ["👋", "🏽"]
    assert not any("\ufffd" in chunk.text for chunk in chunks)


def test_text_is_shown_as_soon_as_it_is_known(glm: ChatGLM) -> None:
    with tokens_computed(glm.model) as counts:
        stream = glm.stream_chat("你好", **GREEDY)
        assert counts == []
        assert next(stream).text
        header = len(glm.tokenizer.encode("\n"))
        assert len(counts) == header + 2  # the content begins with SentencePiece's space, which is stripped


def test_closing_a_stream_stops_the_work(glm: ChatGLM) -> None:
    with tokens_computed(glm.model) as counts:
        stream = glm.stream_chat("你好", **GREEDY)
        next(stream)
        stream.close()
        begun = len(counts)
        assert list(stream) == []
        assert len(counts) == begun
    assert glm.chat("你好", **GREEDY).text == GREETING.content
    assert glm.chat("你好", [HELLO, GREETING], **GREEDY).text == EMOJI.content


def test_streams_take_turns(glm: ChatGLM) -> None:
    streams = [glm.stream_chat("你好", **GREEDY), glm.stream_chat("你好", [HELLO, GREETING], **GREEDY)]
    pairs = list(zip_longest(*streams, fillvalue=Chunk("")))
    assert [text_of(list(chunks)) for chunks in zip(*pairs, strict=True)] == [GREETING.content, EMOJI.content]


def test_threads_get_their_own_answers(glm: ChatGLM) -> None:
    jobs: list[Callable[[], str]] = [
        lambda: text_of(list(glm.stream_chat("你好", **GREEDY))),
        lambda: text_of(list(glm.stream_chat("你好", [HELLO, GREETING], **GREEDY))),
        lambda: glm.chat(ASK.content, [SYSTEM], **GREEDY).message.content,
        lambda: glm.complete(POEM, **GREEDY).text,
    ]
    expected = [GREETING.content, EMOJI.content, CALL.content, POEM_END]
    results = [""] * len(jobs)

    def run(i: int) -> None:
        for _ in range(3):
            results[i] = jobs[i]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == expected


def test_a_stream_that_cannot_begin_says_so_at_the_call(glm: ChatGLM) -> None:
    for error, call in (
        (MessageError, lambda: glm.stream_chat("")),
        (SamplingError, lambda: glm.stream_chat("你好", num_beams=2)),
        (SamplingError, lambda: glm.stream_chat("你好", temperature=-1.0)),
        (ContextLengthError, lambda: glm.stream_chat("你好", max_new_tokens=10**6)),
    ):
        with pytest.raises(error):
            call()
