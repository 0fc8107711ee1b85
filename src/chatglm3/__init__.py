"""ChatGLM3 on today's libraries.

    import chatglm3

    glm = chatglm3.load("nano")
    reply = glm.chat("你好")
    reply = glm.chat("这家酒店怎么样？", reply.history)

Names are imported when they are first used: `import chatglm3` alone does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chatglm3.answers import Chunk, Completion
    from chatglm3.chat import ChatGLM
    from chatglm3.classify import Classification
    from chatglm3.engine.params import SamplingParams
    from chatglm3.errors import (
        AdapterError,
        ChatGLMError,
        CheckpointError,
        ContextLengthError,
        DeviceError,
        DownloadError,
        MessageError,
        NumericsError,
        SamplingError,
        TokenizerError,
    )
    from chatglm3.loading import load
    from chatglm3.messages import History, Message, ToolCall
    from chatglm3.reply import Reply, Usage
    from chatglm3.tokenizer import Tokenizer

__version__ = "0.1.0"

_HOMES = {
    "load": "loading",
    "ChatGLM": "chat",
    "Chunk": "answers",
    "Completion": "answers",
    "Classification": "classify",
    "SamplingParams": "engine.params",
    "History": "messages",
    "Message": "messages",
    "ToolCall": "messages",
    "Reply": "reply",
    "Usage": "reply",
    "Tokenizer": "tokenizer",
    "AdapterError": "errors",
    "ChatGLMError": "errors",
    "CheckpointError": "errors",
    "ContextLengthError": "errors",
    "DeviceError": "errors",
    "DownloadError": "errors",
    "MessageError": "errors",
    "NumericsError": "errors",
    "SamplingError": "errors",
    "TokenizerError": "errors",
}

__all__ = [
    "AdapterError",
    "ChatGLM",
    "ChatGLMError",
    "CheckpointError",
    "Chunk",
    "Classification",
    "Completion",
    "ContextLengthError",
    "DeviceError",
    "DownloadError",
    "History",
    "Message",
    "MessageError",
    "NumericsError",
    "Reply",
    "SamplingError",
    "SamplingParams",
    "Tokenizer",
    "TokenizerError",
    "ToolCall",
    "Usage",
    "load",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'chatglm3' has no attribute {name!r}")
    value: object = getattr(import_module(f"chatglm3.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
