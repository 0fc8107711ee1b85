"""The conversations that the taught model of tests/chat knows, and how to ask for them."""

from __future__ import annotations

from typing import Any

from chatglm3.chat import ChatGLM, Chunk
from chatglm3.messages import Message
from chatglm3.prompt import chat_prompt, message_ids
from chatglm3.reply import Reply
from chatglm3.tokenizer import Tokenizer
from tiny_model import tiny_config, tiny_model

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


def text_of(chunks: list[Chunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


def last_reply(chunks: list[Chunk]) -> Reply:
    reply = chunks[-1].reply
    assert reply is not None
    assert all(chunk.reply is None for chunk in chunks[:-1])
    return reply
