"""Answers of a given form from the bundled models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import validate

import chatglm3
from chatglm3.chat import ChatGLM
from chatglm3.errors import SamplingError

CHOICES = ["好", "好的", "正面", "负面"]
SCHEMA = {
    "type": "object",
    "properties": {
        "情感": {"enum": ["正面", "负面", "😐"]},
        "理由": {"type": "string", "maxLength": 6},
        "评分": {"type": "integer", "minimum": 1, "maximum": 5},
    },
    "required": ["情感", "理由", "评分"],
}
QUERIES = ["房间干净，服务热情。", "太吵了，一夜没睡。", "你好", "a"]


@pytest.fixture(scope="module")
def glm() -> Iterator[ChatGLM]:
    with chatglm3.load("nano") as glm:
        yield glm


@pytest.mark.parametrize(
    "sampling", [{"temperature": 0}, {"temperature": 5, "top_k": 0, "top_p": 1, "seed": 1}], ids=str
)
def test_every_row_of_a_batch_is_one_of_the_choices(glm: ChatGLM, sampling: dict[str, Any]) -> None:
    for reply in glm.chat_batch(QUERIES, choices=CHOICES, **sampling):
        assert reply.text in CHOICES
        assert reply.finish_reason == "stop"
        assert reply.message.content == reply.text and not reply.message.metadata


def test_hot_sampling_finds_every_choice(glm: ChatGLM) -> None:
    seeds = range(40)
    found = {glm.chat("你好", choices=CHOICES, temperature=50, top_k=0, top_p=1, seed=seed).text for seed in seeds}
    assert found == set(CHOICES)


@pytest.mark.parametrize(
    "sampling", [{"temperature": 0}, {"temperature": 5, "top_k": 0, "top_p": 1, "seed": 1}], ids=str
)
def test_every_row_of_a_batch_is_json_under_the_schema(glm: ChatGLM, sampling: dict[str, Any]) -> None:
    for reply in glm.chat_batch(QUERIES, json_schema=SCHEMA, **sampling):
        validate(json.loads(reply.text), SCHEMA)
        assert reply.finish_reason == "stop"


def test_what_is_forced_is_what_would_be_chosen(glm: ChatGLM) -> None:
    """`logprobs` asks for scores of every token, so nothing is skipped; the answer is the same."""
    for kwargs in ({"json_schema": SCHEMA}, {"choices": CHOICES}):
        reply = glm.chat("房间很好", temperature=0, logprobs=0, **kwargs)  # type: ignore[arg-type]
        assert reply.logprobs is not None
        assert reply.text == glm.chat("房间很好", temperature=0, **kwargs).text  # type: ignore[arg-type]


def test_a_stream_is_the_reply_in_pieces(glm: ChatGLM) -> None:
    *chunks, last = glm.stream_chat("房间很好", json_schema=SCHEMA, temperature=0)
    assert last.reply is not None
    assert "".join(chunk.text for chunk in [*chunks, last]) == last.reply.text
    assert last.reply.text == glm.chat("房间很好", json_schema=SCHEMA, temperature=0).text


def test_plain_text_goes_on_in_the_form() -> None:
    with chatglm3.load("nano-base") as base:
        completions = base.complete(
            ["评论：房间干净。\n情感：", "评论：太吵。\n情感："], choices=CHOICES, temperature=0
        )
        assert {c.text for c in completions} <= set(CHOICES)
        assert {c.finish_reason for c in completions} == {"stop"}
        completion = base.complete("评论：房间干净。\n", json_schema=SCHEMA, temperature=0)
        validate(json.loads(completion.text), SCHEMA)


def test_an_answer_that_is_cut_says_so(glm: ChatGLM) -> None:
    reply = glm.chat("你好", json_schema=SCHEMA, max_new_tokens=9, temperature=0)
    assert reply.finish_reason == "length"
    assert reply.text.startswith('{"情感"')


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choices": CHOICES, "json_schema": {}}, "choices and json_schema exclude each other"),
        ({"choices": CHOICES, "num_beams": 2}, "do not work with beam search"),
        ({"choices": CHOICES, "stop": ["好"]}, "stop could cut or block an answer"),
        ({"choices": CHOICES, "banned": [5]}, "banned could cut or block"),
        ({"json_schema": {}, "min_new_tokens": 5}, "min_new_tokens could cut or block"),
        ({"choices": CHOICES, "max_new_tokens": 2}, "the longest choice takes [0-9]+ tokens; max_new_tokens is 2"),
        ({"choices": "好"}, "choices must be a list of strings"),
        ({"json_schema": {"not": {}}}, "json_schema: 'not' at # cannot be enforced"),
    ],
    ids=str,
)
def test_options_that_do_not_go_together_are_refused(glm: ChatGLM, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SamplingError, match=message) as caught:
        glm.chat("你好", **options)
    assert "\n" not in str(caught.value)
