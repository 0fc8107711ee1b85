"""`ChatGLM` on a tiny network that is taught a few conversations; asked hotly enough it says anything."""

from __future__ import annotations

import copy
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatglm3.capabilities import Capabilities
from chatglm3.chat import ChatGLM, Chunk
from chatglm3.engine.engine import Engine
from chatglm3.errors import ChatGLMError, ContextLengthError, MessageError, NumericsError, SamplingError
from chatglm3.messages import TOOLS_PROMPT, History, Message, as_history
from chatglm3.prompt import chat_prompt, completion_prompt, message_ids
from chatglm3.reply import Reply, parse_ids
from chatglm3.tokenizer import Tokenizer
from tiny_model import teach, tiny_config, tiny_model, tokens_computed

GREEDY: dict[str, Any] = {"temperature": 0, "max_new_tokens": 60}
TOOLS = [{"name": "get_weather", "parameters": {"city": {"type": "string"}}}]
SYSTEM = Message.system("Tools:", tools=TOOLS)
HELLO = Message("user", "你好")
GREETING = Message("assistant", "你好，很高兴见到你。今天天气很好。")
ASK = Message("user", "北京今天天气怎么样？")
THOUGHT = Message("assistant", "我问天气")
CALL = Message("assistant", "```python\ntool_call(city='北京', days=3)\n```", "get_weather")
RESULT = Message("observation", '{"sky": "晴"}')
WEATHER = Message("assistant", "北京今天晴。")
EMOJI = Message("assistant", "👋🏽 很好")
POEM, POEM_END = "今天天气怎么样", "？北京今天晴，22度。"


def lesson(
    tokenizer: Tokenizer, history: list[Message], answer: list[Message], stop: int
) -> tuple[list[int], list[int]]:
    ids = [i for message in answer for i in message_ids(tokenizer, message)]
    return chat_prompt(tokenizer, history), [*ids[1:], stop]


def new_glm(tokenizer: Tokenizer, **options: Any) -> ChatGLM:
    return ChatGLM(tiny_model(tiny_config(tokenizer.vocab_size + 7)), tokenizer, **options)


@pytest.fixture(scope="session")
def taught(tiny_tokenizer: Tokenizer) -> ChatGLM:
    t = tiny_tokenizer
    glm = new_glm(t)
    teach(
        glm.model,
        [
            lesson(t, [HELLO], [GREETING], t.user_id),
            lesson(t, [HELLO, GREETING, HELLO], [EMOJI], t.eos_id),
            lesson(t, [SYSTEM, ASK], [THOUGHT, CALL], t.observation_id),
            lesson(t, [SYSTEM, ASK, THOUGHT, CALL, RESULT], [WEATHER], t.user_id),
            (completion_prompt(t, POEM), [*t.encode_continuation(POEM_END), t.eos_id]),
        ],
    )
    return glm


@pytest.fixture
def glm(taught: ChatGLM) -> ChatGLM:
    """The taught model with nothing kept."""
    return ChatGLM(taught.model, taught.tokenizer)


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def last_reply(chunks: list[Chunk]) -> Reply:
    reply = chunks[-1].reply
    assert reply is not None
    assert all(chunk.reply is None for chunk in chunks[:-1])
    return reply


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
    reply = glm.chat("你是一个助手。", role="system", max_new_tokens=4)
    assert reply.history[0] == Message("system", "你是一个助手。")
    prompt = chat_prompt(glm.tokenizer, [Message("system", "你是一个助手。")])
    assert reply.usage.prompt_tokens == len(prompt)
    second = glm.chat("你好", reply.history, max_new_tokens=4)
    assert [m.role for m in second.history] == ["system", "assistant", "user", "assistant"]


def test_an_observation_may_be_empty(glm: ChatGLM) -> None:
    reply = glm.chat("", [SYSTEM, ASK, CALL], role="observation", max_new_tokens=4)
    assert reply.history[3] == Message("observation", "")


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


# Streams


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


# Stop strings


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


# Plain text


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
    one = Engine(glm.model, glm.tokenizer.vocab_size)._new_cache(1, 40).nbytes
    assert glm.engine.cache_bytes <= 4 * one
