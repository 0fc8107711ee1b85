from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from chat_lessons import (
    ASK,
    CALL,
    GREEDY,
    GREETING,
    HELLO,
    POEM,
    SYSTEM,
    THOUGHT,
    last_reply,
    text_of,
)
from chatglm3.chat import ChatGLM
from chatglm3.messages import Message
from chatglm3.prompt import chat_prompt, message_ids
from chatglm3.tokenizer import Tokenizer
from tiny_model import teach, tiny_config, tiny_model, tokens_computed


def substrings(text: str) -> Iterator[str]:
    for start in range(len(text)):
        for end in range(start + 1, min(start + 4, len(text)) + 1):
            yield text[start:end]


def test_a_stop_string_ends_the_answer_wherever_token_borders_are(glm: ChatGLM) -> None:
    for stop in substrings(GREETING.content):
        reply = glm.chat("你好", stop=[stop], **GREEDY)
        expected = GREETING.content[: GREETING.content.find(stop)]
        assert (reply.text, reply.finish_reason) == (expected, "stop"), stop
        assert reply.message == Message("assistant", expected.strip())
        assert reply.history == (HELLO, reply.message)
        assert reply.response == expected.strip()


def test_a_stream_never_shows_a_part_of_a_stop_string(glm: ChatGLM) -> None:
    for stop in ("很高兴见", "。", "见到你。今天天气很差", "今天天气很好。"):
        chunks = list(glm.stream_chat("你好", stop=stop, **GREEDY))
        shown, cut = "", GREETING.content.find(stop)
        for chunk in chunks:
            shown += chunk.text
            assert GREETING.content[: cut if cut >= 0 else None].startswith(shown)
        assert shown == last_reply(chunks).text == GREETING.content[: cut if cut >= 0 else None]
        assert last_reply(chunks).history == (HELLO, Message("assistant", shown))


def test_the_earliest_of_several_stop_strings_wins(glm: ChatGLM) -> None:
    for stop in (["见到", "高兴"], ["高兴", "见到"], ["xyz", "高兴见", "高兴"]):
        assert glm.chat("你好", stop=stop, **GREEDY).text == "你好，很"
        assert glm.complete(POEM, stop=[*stop, "晴", "今天"], **GREEDY).text == "？北京"


def test_a_stop_string_that_ends_the_answer_saves_the_rest(glm: ChatGLM) -> None:
    with tokens_computed(glm.model) as counts:
        reply = glm.chat("你好", stop="好", **GREEDY)
    assert reply.text == "你"
    assert len(counts) < 8
    assert reply.usage.completion_tokens == len(counts)


def test_a_stop_string_in_a_thought_drops_the_call(glm: ChatGLM) -> None:
    reply = glm.chat(ASK.content, [SYSTEM], stop="天气", **GREEDY)
    assert (reply.text, reply.finish_reason) == ("我问", "stop")
    assert reply.messages == (Message("assistant", "我问"),)
    assert reply.tool_calls == ()


def test_a_call_is_no_place_for_stop_strings(glm: ChatGLM) -> None:
    reply = glm.chat(ASK.content, [SYSTEM], stop=["city", "python", "get_weather"], **GREEDY)
    assert (reply.messages, reply.finish_reason) == ((THOUGHT, CALL), "tool_call")


def test_a_stop_string_in_an_answer_without_a_header(tiny_tokenizer: Tokenizer) -> None:
    """Whether it has one shows at its end only; also where the next message begins at once."""
    t = tiny_tokenizer
    model = tiny_model(tiny_config(t.vocab_size, layers=1))
    bare = t.encode("你好，很高兴见到你。")
    teach(
        model,
        [
            (chat_prompt(t, [HELLO]), [*bare, t.user_id]),
            (chat_prompt(t, [ASK]), [*bare, *message_ids(t, CALL), t.user_id]),
        ],
    )
    glm = ChatGLM(model, t)
    assert glm.chat("你好", **GREEDY).text == "你好，很高兴见到你。"
    for limit in (60, len(bare)):
        reply = glm.chat("你好", stop="高兴", temperature=0, max_new_tokens=limit)
        assert (reply.text, reply.finish_reason) == ("你好，很", "stop")
        assert reply.messages == (Message("assistant", "你好，很"),)
    reply = glm.chat(ASK.content, stop="高兴", **GREEDY)
    assert (reply.text, reply.finish_reason, reply.tool_calls) == ("你好，很", "stop", ())
    assert reply.messages == (Message("assistant", "你好，很"),)


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), start=st.integers(0, 30), size=st.integers(1, 4))
def test_any_answer_can_be_stopped_anywhere(taught: ChatGLM, seed: int, start: int, size: int) -> None:
    options: dict[str, Any] = {"seed": seed, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 30}
    free = taught.chat("你好", **options)
    stop = free.text[start : start + size]
    if not stop:
        return
    chunks = list(taught.stream_chat("你好", stop=stop, **options))
    reply = last_reply(chunks)
    assert text_of(chunks) == reply.text == free.text[: free.text.find(stop)]
    assert reply.finish_reason == "stop"
    shown = [m.content for m in reply.messages if not m.metadata]
    assert "\n".join(filter(None, shown)).strip() == reply.text.strip()
