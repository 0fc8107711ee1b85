"""Rows of every shape in use become the same examples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from chatglm3.errors import DataError
from chatglm3.messages import Message
from chatglm3.tokenizer import Tokenizer
from chatglm3.train.data import as_turns, encode_conversation
from chatglm3.train.formats import ChatExample, NoTargetError, TextExample, kind_of, parse_row, unused_fields
from chatglm3.train.reading import read_data

SAMPLES = Path(__file__).parents[3] / "shared" / "data"
WEATHER = {"name": "weather", "description": "天气", "parameters": {"type": "object", "properties": {}}}
CALL = Message("assistant", "```python\ntool_call(city='北京', days=3)\n```", "weather")
SAID = (
    Message.system("简短。", [WEATHER]),
    Message("user", "北京天气？"),
    CALL,
    Message("observation", '{"sky": "晴"}'),
    Message("assistant", "晴。"),
)

OFFICIAL = {
    "tools": [WEATHER],
    "conversations": [
        {"role": "system", "content": "简短。"},
        {"role": "user", "content": "北京天气？"},
        {"role": "assistant", "metadata": "weather", "content": CALL.content},
        {"role": "observation", "content": '{"sky": "晴"}'},
        {"role": "assistant", "content": "晴。"},
    ],
}
PSEUDO_ROLE = {
    "tools": [WEATHER],
    "messages": [
        {"role": "system", "content": "简短。"},
        {"role": "user", "content": "北京天气？"},
        {"role": "tool", "name": "weather", "parameters": {"city": "北京", "days": 3}, "observation": {"sky": "晴"}},
        {"role": "assistant", "content": "晴。"},
    ],
}
SHAREGPT = {
    "system": "简短。",
    "tools": json.dumps([WEATHER], ensure_ascii=False),
    "conversations": [
        {"from": "human", "value": "北京天气？"},
        {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "北京", "days": 3}}'},
        {"from": "observation", "value": '{"sky": "晴"}'},
        {"from": "gpt", "value": "晴。"},
    ],
}
OPENAI = {
    "tools": [{"type": "function", "function": WEATHER}],
    "messages": [
        {"role": "developer", "content": "简短。"},
        {"role": "user", "content": [{"type": "text", "text": "北京"}, {"type": "text", "text": "天气？"}]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "c1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city": "北京", "days": 3}'},
                }
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": '{"sky": "晴"}'},
        {"role": "assistant", "content": "晴。"},
    ],
}
LEGACY_OPENAI = {
    "functions": [WEATHER],
    "messages": [
        *OFFICIAL["conversations"][:2],
        {"role": "assistant", "function_call": {"name": "weather", "arguments": '{"city": "北京", "days": 3}'}},
        {"role": "function", "name": "weather", "content": {"sky": "晴"}},
        {"role": "assistant", "content": "晴。"},
    ],
}
AS_TEXT = {name: json.dumps(value, ensure_ascii=False) for name, value in OFFICIAL.items()}  # a CSV row


def chat(row: Mapping[str, object]) -> ChatExample:
    example = parse_row(row)
    assert isinstance(example, ChatExample) and kind_of(example) == "chat"
    return example


def said(row: Mapping[str, object]) -> list[tuple[Message, bool]]:
    example = chat(row)
    return [tuple(turn) for turn in as_turns(example.messages, tools=example.tools)]


@pytest.mark.parametrize(
    "row", [OFFICIAL, PSEUDO_ROLE, SHAREGPT, OPENAI, LEGACY_OPENAI, AS_TEXT], ids=lambda row: "-".join(row)
)
def test_one_conversation_in_six_shapes_is_one_row_of_ids(tiny_tokenizer: Tokenizer, row: dict[str, Any]) -> None:
    assert said(row) == [(message, message.role == "assistant") for message in SAID]
    example = chat(row)
    expected = encode_conversation(tiny_tokenizer, SAID)
    assert encode_conversation(tiny_tokenizer, example.messages, tools=example.tools) == expected


def test_alpaca() -> None:
    row = {"instruction": "翻译", "input": "你好", "output": "Hello", "history": [["一", "1"]], "system": "译。"}
    texts = [(turn.role, turn.content) for turn, _ in said(row)]
    assert texts == [
        ("system", "译。"),
        ("user", "一"),
        ("assistant", "1"),
        ("user", "翻译\n你好"),
        ("assistant", "Hello"),
    ]
    assert said({**row, "history": '[["一", "1"]]'}) == said(row)
    assert said({"instruction": "翻译", "input": None, "output": "a"})[0][0] == Message("user", "翻译")


@pytest.mark.parametrize("names", [("context", "target"), ("prompt", "response"), ("prompt", "completion")])
def test_completions(names: tuple[str, str]) -> None:
    prompt, response = names
    assert parse_row({prompt: "评论", response: "好", "id": None}) == TextExample("评论", "好")
    assert parse_row({prompt: "评论", response: 1}) == TextExample("评论", "1")
    assert parse_row({prompt: None, response: "好"}) == TextExample("", "好")
    with pytest.raises(NoTargetError, match=f"it has no '{response}'"):
        parse_row({prompt: "评论", response: None})


def test_plain_text() -> None:
    example = parse_row({"text": "从前有座山。"})
    assert example == TextExample("", "从前有座山。") and kind_of(example) == "base"


def test_a_field_that_says_nothing_to_the_model_is_named() -> None:
    assert unused_fields({"text": "好", "label": 1, "empty": None}) == ("label",)
    assert unused_fields(SHAREGPT) == unused_fields({"prompt": "a", "response": "b"}) == ()


def test_a_table_of_all_shapes_has_each_row_in_its_own() -> None:
    """Parquet gives every row all columns."""
    columns = dict.fromkeys(("messages", "prompt", "response", "text", "tools"))
    assert parse_row({**columns, "text": "a"}) == TextExample("", "a")
    assert parse_row({**columns, "prompt": "a", "response": "b"}) == TextExample("a", "b")
    messages = [{"role": "user", "content": "a", "loss": None, "metadata": None, "tool_calls": None}]
    assert said({**columns, "messages": messages}) == [(Message("user", "a"), False)]


def test_loss_and_weight() -> None:
    answers = [
        {"role": "assistant", "content": "a", "loss": False},
        {"role": "assistant", "content": "b", "weight": 0},
        {"role": "assistant", "content": "c", "weight": 1},
        {"role": "tool", "name": "t", "parameters": "{}", "observation": "o", "loss": False},
    ]
    assert [learned for _, learned in said({"messages": answers})] == [False, False, True, False, False]
    assert said({"conversations": [{"from": "gpt", "value": "a", "loss": False}]})[0][1] is False


def test_parallel_calls_become_calls_in_a_row_each_with_its_own_result() -> None:
    calls = [{"id": n, "function": {"name": n, "arguments": "{}"}} for n in ("x", "y", "z")]
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "我查一下。", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "y", "content": "2"},
        {"role": "tool", "tool_call_id": "x", "content": "1"},
    ]
    found = [(m.role, m.metadata, m.content) for m, _ in said({"messages": messages})]
    call = "```python\ntool_call()\n```"
    assert found[1:] == [
        ("assistant", "", "我查一下。"),
        ("assistant", "x", call),
        ("observation", "", "1"),
        ("assistant", "y", call),
        ("observation", "", "2"),
        ("assistant", "z", call),
    ]
    sharegpt = [{"from": "function_call", "value": '[{"name": "x", "arguments": {}}, {"name": "y"}]'}]
    assert [m.metadata for m, _ in said({"conversations": sharegpt})] == ["x", "y"]


def test_no_tools_are_no_system_message() -> None:
    items = [{"role": "user", "content": "a"}]
    for nothing in (None, "", [], "[]", {}):
        assert chat({"messages": items, "tools": nothing}).tools is None


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the sample files are absent")
@pytest.mark.parametrize("name", ["glaive_toolcall_zh_demo.json", "alpaca_zh_demo.json"])
def test_published_files_are_read_to_the_last_row(name: str) -> None:
    rows = list(read_data(SAMPLES / name))
    turns = [turn for row in rows for turn, _ in said(row)]
    assert (len(rows), sum(bool(turn.metadata) for turn in turns)) in ((300, 216), (1000, 0))


USER = {"role": "user", "content": "a"}
BAD_ROWS: list[tuple[dict[str, Any], str]] = [
    ({}, r"its fields \(none\) are those of no known shape; expected one of: conversations; messages; instruction and"),
    ({"question": "a", "answer": "b"}, r"its fields \('question', 'answer'\) are those of no known shape"),
    ({"messages": "[{"}, "the conversation is not JSON: "),
    ({"messages": "[" * 100_000}, "the conversation is not JSON: "),
    ({"messages": {"role": "user"}}, "the conversation is not a list of messages"),
    ({"messages": [["a", "b"]]}, "the conversation is not a list of messages"),
    (
        {"messages": [USER, {"role": "bot", "content": "b"}]},
        "message 2: unknown role 'bot': use one of system, user, assistant, observation, tool",
    ),
    ({"messages": [USER, {"role": "assistant"}]}, "message 2: it has no 'content'"),
    ({"messages": [{"role": "user", "content": 3}]}, "message 1: content must be a string, not int"),
    ({"messages": [{"role": "user", "content": [{"image_url": ""}]}]}, "message 1: a part of its content is no text"),
    ({"messages": [{**USER, "loss": "false"}]}, "message 1: 'loss' must be true or false"),
    ({"messages": [{**USER, "weight": 0.5}]}, "message 1: 'weight' must be 0 or 1"),
    ({"messages": [{"role": "observation", "content": "o"}]}, "an observation comes before any assistant turn"),
    (
        {"messages": [{"role": "tool", "name": "t", "parameters": [], "observation": "o"}]},
        "message 1: a 'tool' item needs 'parameters'",
    ),
    (
        {"messages": [USER, {"role": "tool", "name": "t", "parameters": {"a": 1}}]},
        "message 2: a 'tool' item needs an 'observation'",
    ),
    (
        {"messages": [USER, {"role": "tool", "name": "t", "parameters": {"a": 1}, "observation": None}]},
        "message 2: a 'tool' item needs an 'observation'",
    ),
    ({"messages": [USER, {"role": "tool", "name": "t"}]}, "message 2: a 'tool' item needs an 'observation'"),
    (
        {"messages": [USER, {"role": "tool", "name": None, "parameters": None, "observation": None}]},
        "message 2: a 'tool' item needs a 'name'",
    ),
    (
        {"messages": [*OPENAI["messages"][:3], {"role": "tool", "tool_call_id": "c1", "content": None}]},
        "message 4: the result of a call has no 'content'",
    ),
    ({"messages": "[%s]" % ("9" * 5000)}, "the conversation is not JSON: a number has too many digits"),
    ({"messages": [{"role": "tool", "tool_call_id": "x", "content": "o"}]}, "message 1: a message of the role tool"),
    ({"messages": [USER, {"role": "assistant", "tool_calls": ["x"]}]}, "message 2: a tool call is"),
    (
        {"messages": [{"role": "assistant", "function_call": {"name": "t", "arguments": "{"}}]},
        "message 1: 'arguments' is not JSON",
    ),
    (
        {"messages": [{"role": "assistant", "function_call": {"name": "t", "arguments": '{"my-arg": 1}'}}]},
        "message 1: the argument name 'my-arg' cannot be written",
    ),
    (
        {"messages": [*OPENAI["messages"][:3], {"role": "tool", "tool_call_id": "c2", "content": "o"}]},
        "message 4: the result of 'c2' belongs to no call before it",
    ),
    ({"conversations": [{"from": "bot", "value": "a"}]}, "message 1: it needs a 'value', and a 'from' that is one of"),
    ({"conversations": [{"from": "function_call", "value": "weather()"}]}, "message 1: the function call is not JSON"),
    ({"conversations": [{"from": "function_call", "value": '"x"'}]}, "message 1: a function call is"),
    ({"conversations": [{"from": "function_call", "value": "{}"}]}, "message 1: a call needs a 'name'"),
    ({"messages": [USER], "tools": "[{"}, "'tools' is not JSON"),
    ({"messages": [USER], "tools": "3"}, "'tools' is not a list of tools"),
    ({"messages": OFFICIAL["conversations"], "system": "b"}, "it has a 'system' beside a conversation that begins"),
    ({"instruction": "a", "output": ["b"]}, "'output' must be text, not list"),
    ({"instruction": "a", "output": "b", "history": ["ab"]}, "'history' has 'ab' where a question and its answer"),
    ({"instruction": "a", "output": "b", "history": 3}, "'history' is not a list of pairs"),
    ({"prompt": {"a": 1}, "response": "b"}, "'prompt' must be text, not dict"),
    ({"text": True}, "'text' must be text, not bool"),
]


@pytest.mark.parametrize(("row", "problem"), BAD_ROWS, ids=lambda value: str(value)[:40])
def test_a_row_that_is_not_what_it_must_be(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        parse_row(row)
    assert "\n" not in str(caught.value)
