"""The conversations that the taught model of tests/compat knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chatglm3.compat import ChatGLMForConditionalGeneration, ChatGLMTokenizer
from chatglm3.messages import Message, as_history
from chatglm3.prompt import chat_prompt, message_ids
from chatglm3.tokenizer import Tokenizer

TOOLS = [{"name": "get_weather", "parameters": {"city": {"type": "string"}}}]
CALL = {"role": "assistant", "metadata": "get_weather", "content": "```python\ntool_call(city='北京')\n```"}
TRUSTED = "<|user|>\n你好<|assistant|>"
SYSTEM = {"role": "system", "content": "Tools:", "tools": TOOLS}
GREETING = [
    {"role": "user", "content": "你好"},
    {"role": "assistant", "metadata": "", "content": "你好，很高兴见到你。"},
]
STORY = [{"role": "user", "content": "Tell me a story."}, {"role": "assistant", "metadata": "", "content": "👋 short"}]
WEATHER = [
    {"role": "user", "content": "北京今天天气怎么样？"},
    {"role": "assistant", "metadata": "", "content": "我很好"},
    CALL,
]
RESULT = [
    {"role": "observation", "content": '{"sky": "晴"}'},
    {"role": "assistant", "metadata": "", "content": "北京今天晴。"},
]


@dataclass(frozen=True)
class Loaded:
    """What a script has after its first lines."""

    model: ChatGLMForConditionalGeneration
    tokenizer: ChatGLMTokenizer


def lesson(tokenizer: Tokenizer, history: list[dict[str, Any]], answer: list[dict[str, Any]], stop: int) -> Any:
    ids = [i for item in answer for i in message_ids(tokenizer, Message.from_dict(item))]
    return chat_prompt(tokenizer, as_history(history)), [*ids[1:], stop]
