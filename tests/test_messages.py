from __future__ import annotations

import copy
import dataclasses
import json
import pickle
from typing import Any

import pytest

from chatglm3.errors import MessageError
from chatglm3.messages import ROLES, TOOLS_PROMPT, Message, ToolCall, as_history, check_history, with_tools
from golden import golden_json, needs_golden

TOOLS = [{"name": "查天气", "parameters": {"type": "object", "properties": {}}}]


def test_a_message_is_frozen_hashable_and_can_be_pickled() -> None:
    message = Message("user", "你好")
    with pytest.raises(dataclasses.FrozenInstanceError):
        message.content = "x"  # type: ignore[misc]
    assert message == pickle.loads(pickle.dumps(message)) == copy.deepcopy(message)  # noqa: S301 - our own bytes
    assert hash(message) == hash(Message("user", "你好")) != hash(Message("system", "你好"))
    assert not hasattr(message, "__dict__")


def test_tools_are_kept_as_the_text_of_the_prompt() -> None:
    tools = copy.deepcopy(TOOLS)
    message = Message.system("可用工具：", tools)
    tools[0]["name"] = "changed"
    assert message.tools == json.dumps(TOOLS, indent=4, ensure_ascii=False)
    assert message.to_dict() == {"role": "system", "content": "可用工具：", "tools": TOOLS}
    assert Message.system("none").tools is None
    assert Message.system("empty", []).tools == "[]"


@pytest.mark.parametrize(
    "item",
    [
        {"role": "user", "content": "你好"},
        {"role": "user", "content": "x", "metadata": "meta"},
        {"role": "assistant", "content": "x", "metadata": ""},
        {"role": "assistant", "content": "```python\n1\n```", "metadata": "interpreter"},
        {"role": "observation", "content": ""},
        {"role": "system", "content": "s", "tools": TOOLS},
        {"role": "system", "content": "s", "tools": {"a": {"name": "a"}}},
        {"role": "system", "content": "s", "tools": None},
        {"role": "user", "content": "s", "tools": []},
    ],
)
def test_official_dicts_are_read_and_written_back(item: dict[str, Any]) -> None:
    before = copy.deepcopy(item)
    message = Message.from_dict(item)
    assert message.to_dict() == item == before
    assert message.to_dict() is not message.to_dict()
    assert Message.from_dict(message) is message


def test_an_assistant_dict_gains_the_metadata_that_the_official_history_has() -> None:
    assert Message("assistant", "x").to_dict() == {"role": "assistant", "content": "x", "metadata": ""}


def test_odd_official_dicts() -> None:
    message = Message.from_dict({"role": "system", "content": "x", "metadata": None, "tools": None, "name": "bob"})
    assert (message.metadata, message.tools) == ("None", "null")


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ({"role": "tool", "content": "x"}, "unknown role 'tool': use one of system, user, assistant, observation"),
        ({"role": ["user"], "content": "x"}, "unknown role"),
        ({"role": "user", "content": None}, "content must be a string, not NoneType"),
        ({"role": "user", "content": [{"type": "text"}]}, "content must be a string, not list"),
        ({"role": "user", "content": b"x"}, "content must be a string, not bytes"),
        ({"role": "assistant", "content": "x", "metadata": 3}, "metadata must be a string, not int"),
        ({"role": "system", "content": "x", "tools": {1, 2}}, "tools cannot be written as JSON"),
        ({"role": "user"}, "no 'content'"),
        ({"content": "x"}, "no 'role'"),
        ("你好", "must be a Message or a dict, not str"),
        (("你好", "你好！"), r"\(query, response\) pair .* write each turn as .*'?\"role\": \"user\""),
        (["你好", "你好！"], r"\(query, response\) pair"),
    ],
)
def test_what_is_not_a_message_is_refused_in_one_line(item: Any, reason: str) -> None:
    with pytest.raises(MessageError, match=reason) as caught:
        as_history([item])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tools", [TOOLS, {}, "not json", b"[]"])
def test_the_constructor_takes_tools_as_json_text_only(tools: Any) -> None:
    with pytest.raises(MessageError, match=r"tools must be JSON text: write Message\.system"):
        Message("system", "x", tools=tools)


@needs_golden
def test_every_official_error_is_a_message_error() -> None:
    cases = golden_json("chat_inputs.json")["error_cases"]
    assert len(cases) == 10
    for case in cases:
        with pytest.raises(MessageError):
            as_history([*case["history"], {"role": case["role"], "content": case["query"]}])


def test_a_history_is_a_new_tuple() -> None:
    given = [{"role": "user", "content": "你好"}, Message("assistant", "你好！")]
    before = copy.deepcopy(given)
    history = as_history(given)
    assert history == (Message("user", "你好"), Message("assistant", "你好！"))
    assert given == before
    assert as_history(item for item in given) == history == as_history(history)
    assert as_history(()) == as_history(None) == ()


@pytest.mark.parametrize("items", ["你好", {"role": "user", "content": "x"}, Message("user", "x"), 3])
def test_what_is_not_a_history_is_refused(items: Any) -> None:
    with pytest.raises(MessageError, match="a history must be a list of messages, not"):
        as_history(items)


def test_an_observation_needs_an_assistant_turn_before_it() -> None:
    user, observation = Message("user", "x"), Message("observation", "{}")
    with pytest.raises(MessageError, match="an observation comes before any assistant turn"):
        check_history((user, observation))
    check_history((user, Message("assistant", "call", "get"), observation))
    check_history((user, user, Message("system", "late")))
    check_history(())


def test_tools_go_into_the_system_message() -> None:
    user, system = Message("user", "x"), Message("system", "Be brief.")
    offered = Message.system(TOOLS_PROMPT, TOOLS)
    assert with_tools((user,), None) == (user,)
    assert with_tools((user,), TOOLS) == with_tools((offered, user), TOOLS) == (offered, user)
    assert with_tools((system, user), TOOLS) == (Message.system("Be brief.", TOOLS), user)
    with pytest.raises(MessageError, match="offers other tools"):
        with_tools((offered, user), [])


def test_a_tool_call_is_frozen_through_and_through() -> None:
    arguments = {"city": "北京"}
    call = ToolCall("get_weather", "text", arguments, None)
    arguments["city"] = "changed"
    assert call.arguments == {"city": "北京"}
    with pytest.raises(TypeError):
        call.arguments["city"] = "x"  # type: ignore[index]
    with pytest.raises(dataclasses.FrozenInstanceError):
        call.name = "x"  # type: ignore[misc]
    assert call == pickle.loads(pickle.dumps(call)) == copy.deepcopy(call)  # noqa: S301 - our own bytes
    assert hash(call) == hash(copy.deepcopy(call))
    broken = ToolCall("get_weather", "text", None, "why")
    assert broken == pickle.loads(pickle.dumps(broken)) != call  # noqa: S301 - our own bytes


def test_the_roles_are_the_official_four() -> None:
    assert ROLES == ("system", "user", "assistant", "observation")
