from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch

from chat_lessons import (
    HELLO,
    RESULT,
    SYSTEM,
    TOOLS,
    new_glm,
)
from chatglm3.capabilities import Capabilities
from chatglm3.chat import ChatGLM
from chatglm3.errors import ChatGLMError, ContextLengthError, MessageError, NumericsError, SamplingError
from chatglm3.prompt import chat_prompt
from chatglm3.tokenizer import Tokenizer
from tiny_model import tokens_computed

# What cannot be done


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: g.chat(""), "the query is empty; say something"),
        (lambda g: g.chat("", role="system"), "the query is empty"),
        (lambda g: g.chat(None), "query must be a string, not NoneType"),
        (lambda g: g.chat(3), "query must be a string, not int"),
        (lambda g: g.chat(b"hi"), "query must be a string, not bytes"),
        (lambda g: g.chat(["hi"]), "query must be a string, not list"),
        (lambda g: g.chat("hi", role="tool"), "unknown role 'tool'"),
        (lambda g: g.chat("hi", "hello"), "a history must be a list of messages, not str"),
        (lambda g: g.chat("hi", HELLO), "a history must be a list of messages, not Message"),
        (lambda g: g.chat("hi", {"role": "user", "content": "x"}), "a history must be a list of messages, not dict"),
        (lambda g: g.chat("hi", [("你好", "你好👋")]), r"\(query, response\) pair"),
        (lambda g: g.chat("hi", [{"role": "robot", "content": "x"}]), "unknown role 'robot'"),
        (lambda g: g.chat("hi", [{"role": "user", "content": 5}]), "content must be a string, not int"),
        (lambda g: g.chat("hi", [{"role": "user"}]), "has no 'content'"),
        (lambda g: g.chat("{}", role="observation"), "an observation comes before any assistant turn"),
        (lambda g: g.chat("{}", [SYSTEM, HELLO], role="observation"), "an observation comes before any assistant turn"),
        (lambda g: g.stream_chat("{}", [RESULT]), "an observation comes before any assistant turn"),
        (lambda g: g.chat_batch("你好"), "queries must be a list of strings, not str"),
        (lambda g: g.chat_batch(5), "queries must be a list of strings, not int"),
        (lambda g: g.complete(5), "prompt must be a list of strings, not int"),
        (lambda g: g.complete(["a", None]), "each of prompt must be a string, not NoneType"),
        (lambda g: g.score("a", "bc"), "continuations must be a list of strings, not str"),
        (lambda g: g.score("a", ["b", 3]), "each of continuations must be a string, not int"),
        (lambda g: g.score(None, ["b"]), "prompt must be a string, not NoneType"),
    ],
)
def test_what_is_no_message(glm: ChatGLM, call: Callable[[Any], Any], message: str) -> None:
    with tokens_computed(glm.model) as counts, pytest.raises(MessageError, match=message) as caught:
        call(glm)
    assert "\n" not in str(caught.value)
    assert counts == []


@pytest.mark.parametrize("method", ["chat", "stream_chat", "complete"])
def test_a_parameter_that_is_wrong_or_unknown(glm: ChatGLM, method: str) -> None:
    call = getattr(glm, method)
    for options, message in (
        ({"temprature": 0.5}, "did you mean temperature"),
        ({"temperature": float("nan")}, "temperature must be a number"),
        ({"top_p": 2}, "top_p must be a number from 0 to 1"),
        ({"stop": ""}, "stop must be non-empty strings"),
        ({"banned": [10**6]}, "token id 1000000 is not in the vocabulary"),
    ):
        with pytest.raises(SamplingError, match=message):
            call("你好", **options)


def test_the_context_is_checked_before_any_work(taught: ChatGLM) -> None:
    prompt = len(chat_prompt(taught.tokenizer, [HELLO]))
    glm = ChatGLM(taught.model, taught.tokenizer, max_context=prompt + 10)
    with tokens_computed(glm.model) as counts:
        for call in (
            lambda: glm.chat("你好" * 30),
            lambda: glm.stream_chat("你好" * 30),
            lambda: glm.chat_batch(["你好", "你好" * 30]),
            lambda: glm.complete("你好" * 30),
            lambda: glm.score("你好" * 30, ["你"]),
        ):
            with pytest.raises(ContextLengthError, match=rf"\d+ tokens.*more than the context of {prompt + 10}; "):
                call()
        with pytest.raises(ContextLengthError, match=rf"the prompt has {prompt} tokens and max_new_tokens is 11, "):
            glm.chat("你好", max_new_tokens=11)
    assert counts == []
    assert glm.chat("你好", temperature=0).usage.completion_tokens == 10  # up to the end of the context


def test_a_damaged_network_is_named(tiny_tokenizer: Tokenizer) -> None:
    glm = new_glm(tiny_tokenizer)
    with torch.no_grad():
        glm.model.get_parameter("transformer.encoder.layers.1.mlp.dense_4h_to_h.weight").fill_(float("nan"))
    for call in (
        lambda: glm.chat("你好"),
        lambda: list(glm.stream_chat("你好")),
        lambda: glm.chat_batch(["你好", "北京"]),
        lambda: glm.complete("你好"),
        lambda: glm.score("你好", ["吗"]),
    ):
        with pytest.raises(NumericsError, match=r"layers\.1\.mlp\.dense_4h_to_h at position 0"):
            call()


@pytest.mark.parametrize("method", ["chat", "stream_chat"])
def test_a_base_model_warns_where_it_is_asked_to_chat(tiny_tokenizer: Tokenizer, method: str) -> None:
    glm = new_glm(tiny_tokenizer, name="my-base")
    with pytest.warns(UserWarning, match="Base model") as caught:
        getattr(glm, method)("你好", max_new_tokens=1)
    with pytest.warns(UserWarning, match="Base model") as also:
        glm.chat_batch(["你好", "北京"], max_new_tokens=1)
    assert [w.filename for w in (*caught, *also)] == [__file__, __file__]
    glm.complete("你好", max_new_tokens=1)  # no warning


def test_a_long_context_model_warns_of_tools(taught: ChatGLM) -> None:
    glm = ChatGLM(taught.model, taught.tokenizer)
    glm.capabilities = Capabilities(chat=True, tools=False, context=32768)
    with pytest.warns(UserWarning, match="not trained to call tools"):
        glm.chat("你好", tools=TOOLS, max_new_tokens=1)
    glm.chat("你好", max_new_tokens=1)  # no warning


# The end


def test_closing_frees_the_memory_and_ends_the_use(tiny_tokenizer: Tokenizer) -> None:
    with new_glm(tiny_tokenizer) as glm:
        glm.chat("你好", max_new_tokens=3)
        assert glm.engine.cache_bytes > 0
        stream = glm.stream_chat("你好", max_new_tokens=9)
        weights = weakref.ref(glm.model)
    gc.collect()
    assert weights() is None
    assert glm.engine.cache_bytes == 0
    for call in (
        lambda: glm.chat("你好"),
        lambda: glm.stream_chat("你好"),
        lambda: glm.chat_batch(["你好", "北京"]),
        lambda: glm.complete("你好"),
        lambda: glm.score("你好", ["吗"]),
        lambda: list(stream),
    ):
        with pytest.raises(ChatGLMError, match="this model is closed; load it again"):
            call()
    glm.close()  # a second time does no harm


def test_an_error_inside_with_frees_too(tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(MessageError), new_glm(tiny_tokenizer) as glm:
        glm.chat("")
    with pytest.raises(ChatGLMError, match="closed"):
        glm.chat("你好")


def test_kept_caches_are_bounded(glm: ChatGLM) -> None:
    for i in range(30):
        glm.chat(f"{i}{i}{i}", max_new_tokens=4)
    one = glm.engine.core.network.cache_bytes(1, 40)
    assert glm.engine.cache_bytes <= 4 * one
