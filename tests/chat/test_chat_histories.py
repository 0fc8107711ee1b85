from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from chat_lessons import (
    ASK,
    EMOJI,
    GREEDY,
    GREETING,
    HELLO,
    RESULT,
    SYSTEM,
    TOOLS,
)
from chatglm3.chat import ChatGLM
from chatglm3.errors import ContextLengthError, MessageError
from chatglm3.messages import History, Message, as_history
from chatglm3.prompt import chat_prompt, message_ids
from tiny_model import tokens_computed

# Histories


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_history_is_never_changed(glm: ChatGLM, kind: Callable[[Any], Any]) -> None:
    items = [
        {"role": "system", "content": "Tools:", "tools": copy.deepcopy(TOOLS), "extra": [1]},
        {"role": "user", "content": "你好", "metadata": ""},
        GREETING,
    ]
    history = kind(items)
    before = copy.deepcopy(history)
    stream = glm.stream_chat("你好", history, **GREEDY)
    next(stream)
    stream.close()
    list(glm.stream_chat("你好", history, **GREEDY))
    glm.chat_batch(["你好", "Hello!"], history, **GREEDY)
    reply = glm.chat("你好", history, tools=TOOLS, **GREEDY)
    with pytest.raises(MessageError):
        glm.chat("", history)
    assert history == before
    assert len(reply.history) == 5
    assert reply.history[:3] == as_history(before)
    # And what was returned does not hang on what was given.
    items[0]["tools"][0]["name"] = "other"  # type: ignore[index]
    assert reply.history[:3] == as_history(before)


def test_a_history_may_be_any_iterable_and_none(glm: ChatGLM) -> None:
    expected = glm.chat("你好", [HELLO, GREETING], **GREEDY).text
    assert glm.chat("你好", iter([HELLO, GREETING]), **GREEDY).text == expected
    assert [r.text for r in glm.chat_batch(["你好"] * 2, iter([HELLO, GREETING]), **GREEDY)] == [expected] * 2
    assert glm.chat("你好", None, **GREEDY).text == GREETING.content


def test_two_hundred_calls_with_one_list_cost_the_same_each(glm: ChatGLM) -> None:
    history: list[Any] = [{"role": "system", "content": "今天天气很好。"}]
    costs, held = set(), set()
    for i in range(200):
        reply = glm.chat("你好" if i % 2 else "Hello!", history, temperature=0, max_new_tokens=2)
        costs.add((i % 2, reply.usage.prompt_tokens))
        if i > 4:
            held.add(glm.engine.cache_bytes)
    assert len(costs) == 2
    assert max(held) - min(held) < 5000  # four kept caches, of the one prompt or the other
    assert history == [{"role": "system", "content": "今天天气很好。"}]


def test_a_conversation_computes_each_turn_once_and_begins_once(glm: ChatGLM) -> None:
    fed: list[int] = []
    embedding = glm.model.transformer.embedding.word_embeddings
    handle = embedding.register_forward_hook(lambda _m, inputs, _o: fed.extend(inputs[0].flatten().tolist()))
    try:
        first = glm.chat("你好", **GREEDY)
        second = glm.chat("你好", first.history, **GREEDY)
    finally:
        handle.remove()
    assert (first.usage.cached_tokens, second.text) == (0, EMOJI.content)
    before = len(chat_prompt(glm.tokenizer, [HELLO])) + len(message_ids(glm.tokenizer, GREETING)) - 1
    assert second.usage.cached_tokens == before
    prompt = chat_prompt(glm.tokenizer, [HELLO, GREETING, HELLO])
    assert second.usage.prompt_tokens == len(prompt)
    assert fed == [*prompt, *message_ids(glm.tokenizer, EMOJI)[1:]]
    assert (fed.count(glm.tokenizer.gmask_id), fed.count(glm.tokenizer.sop_id)) == (1, 1)


def test_a_tool_conversation_is_reused_whole(glm: ChatGLM) -> None:
    """What is stored of a call gives the ids that the model wrote."""
    first = glm.chat(ASK.content, [SYSTEM], **GREEDY)
    second = glm.chat(RESULT.content, first.history, role="observation", **GREEDY)
    assert second.usage.cached_tokens == first.usage.total_tokens - 1  # all but the stop id


def test_the_tokens_do_not_depend_on_reuse(glm: ChatGLM, taught: ChatGLM) -> None:
    history: History = ()
    for turn in range(6):
        options: dict[str, Any] = {"temperature": 1.2, "top_p": 1.0, "seed": turn, "max_new_tokens": 12}
        reply = glm.chat(f"你好{turn}", history, **options)
        alone = ChatGLM(taught.model, taught.tokenizer).chat(f"你好{turn}", history, **options)
        assert (reply.text, reply.history) == (alone.text, alone.history)
        assert alone.usage.cached_tokens == 0
        assert (reply.usage.cached_tokens > 0) == (turn > 0)
        history = reply.history


# Batches


def test_a_batch_is_one_by_one_in_order(glm: ChatGLM) -> None:
    queries = ["你好", "北京", "你好", "Tell me a short story.", *[str(i) for i in range(20)]]
    alone = [glm.chat(q, [HELLO, GREETING], **GREEDY) for q in queries]
    together = glm.chat_batch(queries, [HELLO, GREETING], **GREEDY)
    assert [r.text for r in together] == [r.text for r in alone]
    assert [r.history for r in together] == [r.history for r in alone]
    assert [r.finish_reason for r in together] == [r.finish_reason for r in alone]
    assert glm.chat_batch([]) == []


def test_a_batch_computes_its_history_once(glm: ChatGLM) -> None:
    queries = ["你好", "北京", "Hello!"]
    prompts = [chat_prompt(glm.tokenizer, [SYSTEM, HELLO, GREETING, Message("user", q)]) for q in queries]
    shared = len(chat_prompt(glm.tokenizer, [SYSTEM, HELLO, GREETING])) - 1
    with tokens_computed(glm.model) as counts:
        replies = glm.chat_batch(queries, [SYSTEM, HELLO, GREETING], temperature=0, max_new_tokens=1)
    assert all(r.usage.cached_tokens >= shared for r in replies)
    assert sum(counts) <= shared + 3 + sum(len(p) - shared for p in prompts)


def test_nothing_of_a_batch_is_begun_if_one_of_it_is_wrong(glm: ChatGLM) -> None:
    with tokens_computed(glm.model) as counts:
        with pytest.raises(MessageError, match="the query is empty"):
            glm.chat_batch(["你好", ""], **GREEDY)
        with pytest.raises(MessageError, match="each of queries must be a string, not int"):
            glm.chat_batch(["你好", 3], **GREEDY)  # type: ignore[list-item]
        with pytest.raises(ContextLengthError):
            glm.chat_batch(["你好", "好" * 600])
    assert counts == []
