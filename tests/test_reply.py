from __future__ import annotations

import ast
import dataclasses
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatglm3.errors import MessageError
from chatglm3.messages import Message, ToolCall, as_history
from chatglm3.prompt import chat_prompt
from chatglm3.reply import Parsed, Reply, ReplyParser, Usage, official_response, parse_ids, parse_text
from chatglm3.tokenizer import Tokenizer
from chatglm3.toolcall import format_tool_call, parse_tool_call
from golden import golden_json, needs_golden

GOLDEN: dict[str, Any] = golden_json("responses.json")
CASES: list[dict[str, Any]] = GOLDEN.get("cases", [])

# The official code evaluates these as Python. A program that never runs what a model writes must not: they are no
# call of tool_call with plain values, and become a ToolCall that says so.
EVALUATED = {
    *("arg_plus", "arg_dstar", "arg_nested", "arg_comprehension", "arg_fstring", "arg_conditional", "arg_index"),
    *("arg_ternary_bool", "arg_builtin", "arg_percent", "odd_number", "odd_string", "odd_list", "odd_name_only"),
    *("odd_print", "odd_harmless_eval", "odd_local_name", "odd_local_history", "odd_lambda", "odd_walrus"),
    *("odd_tuple_of_calls", "interpreter_with_tools", "missing_leading_newline_tools_valid_python"),
}
# Literals that JSON does not have, and arguments are JSON.
NOT_JSON = {"arg_set", "arg_bytes", "arg_complex", "arg_ellipsis", "arg_inf"}
# The official code raises; the call is plain enough to read.
READABLE = {"fence_missing_close", "fence_trailing_newline"}


def official_value(result: dict[str, Any]) -> Any:
    """What the official code returned, as JSON holds it, with the content stripped as we strip it."""
    if "parameters_repr" in result:
        parameters = json.loads(json.dumps(ast.literal_eval(result["parameters_repr"])))
        return {"name": result["name"], "parameters": parameters}
    value = result["value"]
    return {**value, "content": value["content"].strip()} if "content" in value and result["type"] == "dict" else value


@needs_golden
@pytest.mark.parametrize("case", [c for c in CASES if "result" in c], ids=lambda case: case["name"])
def test_where_the_official_code_returns(case: dict[str, Any]) -> None:
    parsed = parse_text(case["output"])
    # Officially a tool segment's metadata and content are stored with the space that SentencePiece put in front
    # of them, and a replayed history then has other ids than the model wrote. They are stripped here.
    stored = tuple(Message("assistant", item["content"].strip(), item["metadata"].strip()) for item in case["added"])
    assert parsed.messages == stored
    response = official_response(parsed, as_history(GOLDEN["histories"][case["history"]]))
    if case["name"] in EVALUATED | NOT_JSON:
        call = parsed.tool_calls[-1]
        assert call.arguments is None
        assert call.error is not None
        assert response == {"name": call.name, "content": call.content}
    else:
        assert response == official_value(case["result"])


@needs_golden
@pytest.mark.parametrize("case", [c for c in CASES if "exception" in c], ids=lambda case: case["name"])
def test_where_the_official_code_raises(case: dict[str, Any]) -> None:
    parsed = parse_text(case["output"])
    response = official_response(parsed, as_history(GOLDEN["histories"][case["history"]]))
    call = parsed.tool_calls[-1]
    if case["name"] in READABLE:
        assert response == {"name": "get_weather", "parameters": {"a": 1}}
    else:
        assert call.arguments is None
        assert call.error is not None
        assert call.error.startswith("the call cannot be read: ")
        assert "\n" not in call.error


def test_a_thought_before_a_call_is_text() -> None:
    parsed = parse_text("\n 我来查。[[训练时间]]<|assistant|> get_weather\n ```python\ntool_call(city='北京')\n```")
    content = "```python\ntool_call(city='北京')\n```"
    call = ToolCall("get_weather", content, {"city": "北京"}, None)
    messages = (Message("assistant", "我来查。[[训练时间]]"), Message("assistant", content, "get_weather"))
    assert parsed == Parsed(messages, (call,), "我来查。2023年")


def test_plain_segments_are_lines_of_the_text() -> None:
    assert parse_text("a<|assistant|>\n b <|assistant|><|assistant|>\n c").text == "a\nb\nc"


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("tool_call('北京')", "every argument needs a name of its own, as in tool_call(name=value)"),
        ("tool_call(a=1, a=2)", "every argument needs a name of its own, as in tool_call(name=value)"),
        ("get_weather(city=1)", "it is not tool_call(name=value, ...)"),
        ("os.system('rm -rf /')", "it is not tool_call(name=value, ...)"),
        ("tool_call(a=open('x'))", "the value of 'a' is not a plain string, number, list, dict, True, False or None"),
        ("tool_call(a=1e999)", "the value of 'a' is not a plain string, number, list, dict, True, False or None"),
        ("{'a': {1}}", "the dict of arguments is not a plain string, number, list, dict, True, False or None"),
        ("tool_call(a='\\ud800')", "the value of 'a' is not a plain string, number, list, dict, True, False or None"),
        ("tool_call(", "'(' was never closed"),
        ("", "it is empty"),
        ("tool_call(a=" + "-" * 5000 + "1)", "it is nested too deeply"),
        ("not " * 100_000 + "1", "it is nested too deeply"),
    ],
)
def test_what_is_wrong_with_a_call_is_said(call: str, error: str) -> None:
    content = f"```python\n{call}\n```"
    assert parse_tool_call("t", content) == ToolCall("t", content, None, f"the call cannot be read: {error}")


def test_an_unknown_escape_is_kept_without_a_warning() -> None:
    assert parse_tool_call("t", "```python\ntool_call(p='\\d+')\n```").arguments == {"p": "\\d+"}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.from_regex("arg_[a-z]{1,6}", fullmatch=True), JSON, max_size=4)


@given(arguments=ARGUMENTS)
def test_a_written_call_reads_back(arguments: dict[str, Any]) -> None:
    assert parse_tool_call("t", format_tool_call(arguments)).arguments == arguments


@pytest.mark.parametrize("name", ["my-arg", "class", "", "1st", "a=1, b"])
def test_an_argument_name_that_python_cannot_write_is_refused(name: str) -> None:
    with pytest.raises(MessageError, match="cannot be written in a call"):
        format_tool_call({name: 1})


MARKS = st.sampled_from(["<|assistant|>", "\n", " ", "[[训练时间]]", "[[", "]]", "get\n", "```python\n", "tool_call("])


@given(text=st.lists(MARKS | st.text(max_size=6), max_size=12).map("".join))
def test_any_text_parses(text: str) -> None:
    parsed = parse_text(text)
    assert parsed.messages
    assert all(m.role == "assistant" and m.content == m.content.strip() for m in parsed.messages)
    assert len(parsed.tool_calls) == sum(bool(m.metadata) for m in parsed.messages)
    assert isinstance(official_response(parsed, parsed.messages), str | dict)


@st.composite
def answers(draw: st.DrawFn, tokenizer: Tokenizer) -> list[int]:
    """Ids as a model might give them: pieces of marked text, bytes, control ids and ids without a meaning."""
    special = st.sampled_from([tokenizer.assistant_id, *tokenizer.stop_ids, tokenizer.gmask_id, 0, -1])
    any_id = st.integers(0, tokenizer.vocab_size + 50) | special
    text = (MARKS | st.text(max_size=4)).map(tokenizer.encode)
    parts = st.lists(text | any_id.map(lambda i: [i]) | st.integers(3, 258).map(lambda i: [i]), max_size=14)
    return [i for part in draw(parts) for i in part]


@given(data=st.data())
def test_any_ids_parse_and_stream_the_same_text(any_tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(answers(any_tokenizer))
    parser = ReplyParser(any_tokenizer)
    streamed = "".join(map(parser.push, ids)) + parser.finish()
    parsed = parse_ids(any_tokenizer, ids)
    assert streamed == parsed.text
    assert parser.parsed == parsed
    assert len(parsed.messages) == 1 + ids.count(any_tokenizer.assistant_id)


@given(data=st.data())
def test_ids_parse_as_their_text(any_tokenizer: Tokenizer, data: st.DataObject) -> None:
    # In text a spelled-out marker separates segments, as officially; in ids only the control id does.
    parts = data.draw(st.lists(st.text(max_size=12) | st.just("\n"), max_size=6))
    text = "".join(parts).replace("<|assistant|>", "").replace("\u2581", " ")
    assert parse_ids(any_tokenizer, any_tokenizer.encode(text)) == parse_text(text)


def test_a_spelled_out_marker_is_text_in_ids(tiny_tokenizer: Tokenizer) -> None:
    text = "\n a <|assistant|>\n b"
    assert [m.content for m in parse_text(text).messages] == ["a", "b"]
    [message] = parse_ids(tiny_tokenizer, tiny_tokenizer.encode(text)).messages
    assert message.content == "a <|assistant|>\n b"


def test_control_ids_show_no_text(tiny_tokenizer: Tokenizer) -> None:
    t = tiny_tokenizer
    ids = [*t.encode("\n"), *t.encode("好"), t.observation_id, t.eos_id, t.user_id]
    assert parse_ids(t, ids) == Parsed((Message("assistant", "好"),), (), "好")
    assert parse_ids(t, []) == Parsed((Message("assistant", ""),), (), "")


def stream(tokenizer: Tokenizer, text: str) -> list[str]:
    parser = ReplyParser(tokenizer)
    return [*map(parser.push, tokenizer.encode(text)), parser.finish()]


def test_plain_text_streams_after_its_header(tiny_tokenizer: Tokenizer) -> None:
    t = tiny_tokenizer
    parser = ReplyParser(t)
    assert [parser.push(i) for i in t.encode("\n ")] == [""] * len(t.encode("\n "))
    assert [parser.push(i) for i in (t.encode("你")[-1], t.encode(" ")[-1])] == ["你", ""]
    assert [parser.push(byte + 3) for byte in "👋".encode()] == ["", "", "", " 👋"]
    assert [parser.push(t.newline_id), parser.finish()] == ["", ""]


def test_nothing_of_a_call_is_shown(tiny_tokenizer: Tokenizer) -> None:
    t = tiny_tokenizer
    assert set(stream(t, "get\n```python\ntool_call()\n```")) == {""}
    assert stream(t, "no header") == [""] * len(t.encode("no header")) + ["no header"]


def test_a_placeholder_is_held_back_until_it_is_decided(tiny_tokenizer: Tokenizer) -> None:
    parts = stream(tiny_tokenizer, "\nto [[训练时间]] [[训练] end")
    assert "".join(parts) == "to 2023年 [[训练] end"
    assert not any("训练时" in part for part in parts)
    assert "2023年" in [part.strip() for part in parts]


def test_segments_stream_with_a_line_between_them(tiny_tokenizer: Tokenizer) -> None:
    t = tiny_tokenizer
    parser = ReplyParser(t)
    ids = [*t.encode("\n"), *t.encode("a"), t.assistant_id, *t.encode("get\nx"), t.assistant_id, *t.encode("\nb")]
    assert "".join(map(parser.push, ids)) + parser.finish() == "a\nb"
    assert [m.metadata for m in parser.parsed.messages] == ["", "get", ""]


PLAIN = st.text(max_size=20).map(str.strip).filter(lambda text: "\u2581" not in text)
CALL = st.builds(
    lambda name, arguments: Message("assistant", format_tool_call(arguments), name),
    st.sampled_from(["get_weather", "查天气", "interpreter"]),
    ARGUMENTS.filter(lambda arguments: "\u2581" not in repr(arguments)),
)
ANSWER = st.builds(Message, st.just("assistant"), PLAIN) | CALL


@given(written=st.lists(ANSWER, min_size=1, max_size=3))
def test_a_replayed_history_has_the_ids_that_the_model_wrote(any_tokenizer: Tokenizer, written: list[Message]) -> None:
    history = (Message("user", "你好"),)
    prompt = chat_prompt(any_tokenizer, history)
    produced = chat_prompt(any_tokenizer, (*history, *written), add_generation_prompt=False)[len(prompt) :]
    parsed = parse_ids(any_tokenizer, [*produced, any_tokenizer.observation_id])
    assert parsed.messages == tuple(written)
    replayed = chat_prompt(any_tokenizer, (*history, *parsed.messages), add_generation_prompt=False)
    assert replayed == prompt + produced


def make_reply(text: str, *history: Message) -> Reply:
    parsed = parse_text(text)
    full = (*history, *parsed.messages)
    return Reply(parsed.text, parsed.messages, parsed.tool_calls, full, "stop", Usage(5, 3, 2))


def test_a_reply_unpacks_like_the_official_pair() -> None:
    user = Message("user", "你好")
    reply = make_reply("\n 你好！", user)
    response, history = reply
    assert response == reply.response == "你好！"
    assert history == (user, Message("assistant", "你好！")) == (user, reply.message)
    assert reply.usage.total_tokens == 8
    with pytest.raises(dataclasses.FrozenInstanceError):
        reply.text = "x"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(reply)) == reply  # noqa: S301 - our own bytes


def test_a_reply_with_a_call_returns_what_the_official_chat_returns() -> None:
    call = "get\n```python\ntool_call(n=1)\n```"
    system, user = Message.system("tools:", [{"name": "get"}]), Message("user", "1?")
    assert make_reply(call, system, user).response == {"name": "get", "parameters": {"n": 1}}
    assert make_reply(call, user).response == {"name": "get", "content": call[4:]}
    assert make_reply("get\noops", system, user).response == {"name": "get", "content": "oops"}
