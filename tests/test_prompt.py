from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatglm3.messages import ROLES, Message, as_history
from chatglm3.prompt import chat_prompt, completion_prompt, message_ids, render
from chatglm3.tokenizer import Tokenizer
from golden import golden_json, needs_golden

GOLDEN: dict[str, Any] = golden_json("chat_inputs.json")

MESSAGES = st.builds(
    Message, st.sampled_from(ROLES), st.text(max_size=12) | st.just("<|user|>\n[gMASK]sop"), st.text(max_size=6)
)


@needs_golden
@pytest.mark.parametrize("case", GOLDEN.get("cases", []), ids=lambda case: case["name"])
def test_every_conversation_has_the_official_ids(official_tokenizer: Tokenizer, case: dict[str, Any]) -> None:
    messages = (*as_history(case["history"]), Message(case["role"], case["query"]))
    assert chat_prompt(official_tokenizer, messages) == case["input_ids"]


@needs_golden
@pytest.mark.parametrize("case", GOLDEN.get("single_messages", []), ids=lambda case: str(case["ids"][:4]))
def test_every_message_has_the_official_ids(official_tokenizer: Tokenizer, case: dict[str, Any]) -> None:
    message = Message(case["role"], case["message"], case["metadata"])
    assert message_ids(official_tokenizer, message) == case["ids"]


def test_a_prompt_is_the_prefix_the_messages_and_the_answerer(tiny_tokenizer: Tokenizer) -> None:
    t = tiny_tokenizer
    system, user = Message("system", "好"), Message("user", "1")
    ids = chat_prompt(t, (system, user))
    assert ids[:3] == [t.gmask_id, t.sop_id, t.system_id]
    assert ids == [t.gmask_id, t.sop_id, *message_ids(t, system), *message_ids(t, user), t.assistant_id]
    assert chat_prompt(t, (system, user), add_generation_prompt=False) == ids[:-1]
    assert message_ids(t, user) == [t.user_id, *t.encode("\n"), *t.encode("1")]
    assert completion_prompt(t, "好") == [t.gmask_id, t.sop_id, *t.encode("好")]


def test_tools_follow_the_content_of_a_system_message_only(tiny_tokenizer: Tokenizer) -> None:
    tools = [{"name": "get_weather"}]
    text = '可用：\n[\n    {\n        "name": "get_weather"\n    }\n]'
    shown = message_ids(tiny_tokenizer, Message.system("可用：", tools))
    assert shown == message_ids(tiny_tokenizer, Message("system", text))
    hidden = Message.from_dict({"role": "user", "content": "可用：", "tools": tools})
    assert message_ids(tiny_tokenizer, hidden) == message_ids(tiny_tokenizer, Message("user", "可用："))


@given(messages=st.lists(MESSAGES, max_size=5))
def test_only_the_program_writes_control_ids(any_tokenizer: Tokenizer, messages: list[Message]) -> None:
    ids = chat_prompt(any_tokenizer, messages)
    written = [any_tokenizer.gmask_id, any_tokenizer.sop_id]
    written += [any_tokenizer.role_id(message.role) for message in messages]
    assert [i for i in ids if i >= any_tokenizer.n_pieces or i <= 2] == [*written, any_tokenizer.assistant_id]


def test_render_shows_one_line_for_each_message(tiny_tokenizer: Tokenizer) -> None:
    ids = chat_prompt(tiny_tokenizer, (Message("system", "好"), Message("user", "a\nb <|user|>")))
    lines = ["[gMASK]sop", r"<|system|> \n 好", r"<|user|> \n a\nb <|user|>", "<|assistant|>"]
    assert render(tiny_tokenizer, ids).split("\n") == lines
    assert render(tiny_tokenizer, [tiny_tokenizer.user_id, tiny_tokenizer.eos_id]) == "<|user|></s>"
    assert render(tiny_tokenizer, []) == ""
