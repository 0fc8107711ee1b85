from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import pytest

from chatglm3.capabilities import Capabilities, capabilities_of
from tiny_model import tiny_config

CONFIG = tiny_config(64)


@pytest.mark.parametrize(
    ("name", "rope_ratio", "chat", "tools"),
    [
        ("zai-org/chatglm3-6b", 1, True, True),
        ("modelscope:ZhipuAI/chatglm3-6b", 1, True, True),
        ("zai-org/chatglm3-6b-32k", 50, True, False),
        ("THUDM/chatglm3-6b-128k", 500, True, False),
        ("zai-org/chatglm3-6b-base", 1, False, False),
        ("modelscope:ZhipuAI/chatglm3-6b-base", 1, False, False),
        ("nano", 1, True, True),
        ("nano-base", 1, False, False),
        ("/data/base/chatglm3-6b", 1, True, True),
        ("/data/chatglm3-6b-base/", 1, False, False),
        ("C:\\models\\ChatGLM3-6B-Base", 1, False, False),
        ("database-models/baseline_v2", 1, True, True),
        ("my_base_model", 1, False, False),
        ("", 1, True, True),
    ],
)
def test_the_name_and_the_rotary_base_decide(name: str, rope_ratio: float, chat: bool, tools: bool) -> None:
    config = replace(CONFIG, rope_ratio=rope_ratio)
    assert capabilities_of(name, config) == Capabilities(chat=chat, tools=tools, context=512)


def test_the_name_that_the_config_carries_counts_too() -> None:
    config = replace(CONFIG, extra=MappingProxyType({"_name_or_path": "THUDM/chatglm3-6b-base"}))
    assert not capabilities_of("/tmp/renamed", config).chat
