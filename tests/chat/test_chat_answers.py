from __future__ import annotations

from typing import Any

import pytest

from chat_lessons import (
    ASK,
    CALL,
    EMOJI,
    GREEDY,
    GREETING,
    HELLO,
    RESULT,
    SYSTEM,
    THOUGHT,
    TOOLS,
    WEATHER,
    last_reply,
    text_of,
)
from chatglm3.chat import ChatGLM
from chatglm3.errors import MessageError
from chatglm3.messages import TOOLS_PROMPT, Message
from chatglm3.prompt import chat_prompt, message_ids
from chatglm3.reply import parse_ids

# Answers


def test_an_answer(glm: ChatGLM) -> None:
    reply = glm.chat("你好", **GREEDY)
    assert reply.text == GREETING.content
    assert reply.message == GREETING
    assert reply.messages == (GREETING,)
    assert reply.history == (HELLO, GREETING)
    assert (reply.tool_calls, reply.finish_reason, reply.logprobs) == ((), "stop", None)
    answer = message_ids(glm.tokenizer, GREETING)[1:]
    assert reply.usage.prompt_tokens == len(chat_prompt(glm.tokenizer, [HELLO]))
    assert reply.usage.completion_tokens == len(answer) + 1  # and the stop id
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens


def test_a_reply_unpacks_like_the_official_pair(glm: ChatGLM) -> None:
    response, history = glm.chat("你好", history=[], **GREEDY)
    assert response == GREETING.content
    response, history = glm.chat("你好", history, **GREEDY)
    assert response == EMOJI.content
    assert history == (HELLO, GREETING, HELLO, EMOJI)


def test_a_tool_call_and_its_result(glm: ChatGLM) -> None:
    first = glm.chat(ASK.content, [SYSTEM], **GREEDY)
    assert first.finish_reason == "tool_call"
    assert first.text == THOUGHT.content
    assert first.messages == (THOUGHT, CALL)
    (call,) = first.tool_calls
    assert (call.name, call.error) == ("get_weather", None)
    assert dict(call.arguments or {}) == {"city": "北京", "days": 3}
    assert first.response == {"name": "get_weather", "parameters": {"city": "北京", "days": 3}}
    second = glm.chat(RESULT.content, first.history, role="observation", **GREEDY)
    assert (second.text, second.finish_reason) == (WEATHER.content, "stop")
    assert second.history == (SYSTEM, ASK, THOUGHT, CALL, RESULT, WEATHER)


def test_a_tool_call_streams_its_thought_only(glm: ChatGLM) -> None:
    chunks = list(glm.stream_chat(ASK.content, [SYSTEM], **GREEDY))
    assert text_of(chunks) == THOUGHT.content
    assert len(chunks) > 2
    reply, whole = last_reply(chunks), glm.chat(ASK.content, [SYSTEM], **GREEDY)
    assert (reply.messages, reply.finish_reason) == ((THOUGHT, CALL), "tool_call")
    assert (reply.tool_calls, reply.history) == (whole.tool_calls, whole.history)


def test_an_unfinished_call_is_cut_by_length_not_a_tool_call(glm: ChatGLM) -> None:
    whole = glm.chat(ASK.content, [SYSTEM], **GREEDY)
    limit = whole.usage.completion_tokens - 5
    reply = glm.chat(ASK.content, [SYSTEM], temperature=0, max_new_tokens=limit)
    assert reply.messages[0] == THOUGHT
    assert reply.message.metadata == "get_weather"
    assert CALL.content.startswith(reply.message.content)
    assert reply.finish_reason == "length"
    assert reply.tool_calls[0].error is not None


def test_a_length_limit_keeps_the_last_token(glm: ChatGLM) -> None:
    answer = [*message_ids(glm.tokenizer, GREETING)[1:]]
    for limit in range(1, len(answer) + 1):
        reply = glm.chat("你好", temperature=0, max_new_tokens=limit)
        assert reply.text == parse_ids(glm.tokenizer, answer[:limit]).text
        assert (reply.finish_reason, reply.usage.completion_tokens) == ("length", limit)
    assert reply.text == GREETING.content


def test_the_system_speaks_first(glm: ChatGLM) -> None:
    reply = glm.chat("你是一个助手。", role="system", max_new_tokens=4, temperature=0)
    assert reply.history[0] == Message("system", "你是一个助手。")
    prompt = chat_prompt(glm.tokenizer, [Message("system", "你是一个助手。")])
    assert reply.usage.prompt_tokens == len(prompt)
    second = glm.chat("你好", reply.history, max_new_tokens=4, temperature=0)
    assert [m.role for m in second.history] == ["system", "assistant", "user", "assistant"]


def test_an_observation_may_be_empty(glm: ChatGLM) -> None:
    reply = glm.chat("", [SYSTEM, ASK, CALL], role="observation", max_new_tokens=4)
    assert reply.history[3] == Message("observation", "")


# Tools


@pytest.mark.parametrize(
    "tools", [TOOLS, {"get_weather": {"params": [{"name": "city"}]}}, []], ids=["list", "dict", "[]"]
)
def test_tools_are_offered_in_a_system_message(glm: ChatGLM, tools: Any) -> None:
    reply = glm.chat("你好", tools=tools, max_new_tokens=2)
    assert reply.history[0] == Message.system(TOOLS_PROMPT, tools=tools)
    assert reply.history[1] == HELLO
    # They join the system message that is there, and may be given again.
    again = glm.chat("你好", reply.history, tools=tools, max_new_tokens=2)
    assert again.history[: len(reply.history)] == reply.history
    other = glm.chat("你好", [Message("system", "你是助手")], tools=tools, max_new_tokens=2)
    assert other.history[0] == Message.system("你是助手", tools=tools)
    (batched,) = glm.chat_batch(["你好"], tools=tools, max_new_tokens=2)
    assert batched.history[0] == reply.history[0]


def test_two_sets_of_tools_are_a_conflict(glm: ChatGLM) -> None:
    with pytest.raises(MessageError, match="offers other tools"):
        glm.chat("你好", [SYSTEM], tools=[])
    with pytest.raises(MessageError, match="cannot be written as JSON"):
        glm.chat("你好", tools={"f": print})


def test_the_callers_tools_are_not_kept(glm: ChatGLM) -> None:
    tools = [{"name": "f"}]
    reply = glm.chat("你好", tools=tools, max_new_tokens=2)
    tools[0]["name"] = "g"
    assert '"f"' in (reply.history[0].tools or "")
