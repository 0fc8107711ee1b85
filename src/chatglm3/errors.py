"""The exception tree: every failure that a caller can expect is a `ChatGLMError`.

    ChatGLMError
    ├── CheckpointError      the files of a model: missing, truncated, misshapen, not ChatGLM3
    │   └── AdapterError     the files of a LoRA or P-Tuning adapter
    ├── DownloadError        a model that cannot be found or fetched
    ├── TokenizerError       tokenizer.model absent, corrupt, or asked for a token it does not have
    ├── MessageError         a message or history that is not one (also a ValueError)
    ├── SamplingError        a sampling parameter out of range (also a ValueError)
    ├── ContextLengthError   a prompt that does not fit the context (also a ValueError)
    ├── NumericsError        a logit that is not a finite number (also an ArithmeticError)
    ├── DeviceError          a device that does not exist, or has too little memory
    ├── DataError            a table, or a row of it, that cannot be read
    ├── JobError             a bulk job that cannot start or go on
    └── TrainingError        a training run that cannot start or go on

Each message is one line: what happened, why, and what to do next.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class ChatGLMError(Exception):
    """Root of every expected failure."""


class CheckpointError(ChatGLMError):
    """The files of a model are missing, truncated, misshapen, or not those of a ChatGLM3 model."""


class AdapterError(CheckpointError):
    """The files of an adapter are missing, or do not fit the model."""


class DownloadError(ChatGLMError):
    """A model name that is unknown, or files that cannot be fetched."""


class TokenizerError(ChatGLMError):
    """tokenizer.model is absent or corrupt, or a token was asked for that it does not have."""


class MessageError(ChatGLMError, ValueError):
    """A message, history or role that does not follow the chat protocol."""


class SamplingError(ChatGLMError, ValueError):
    """A sampling parameter that is unknown or out of range."""


class ContextLengthError(ChatGLMError, ValueError):
    """A prompt (with the tokens asked for) that is longer than the model's context."""


class NumericsError(ChatGLMError, ArithmeticError):
    """A logit that is NaN or infinite; names the layer and position where it began."""


class DeviceError(ChatGLMError):
    """A device that does not exist, or that has too little memory for the model."""


class DataError(ChatGLMError):
    """A table that cannot be read, or a row that is not what it must be; names the file and the line."""


class JobError(ChatGLMError):
    """A bulk job that cannot start or go on."""


class TrainingError(ChatGLMError):
    """A training run that cannot start or go on."""


def attempt(work: Callable[[], T], *, keep_errors: bool) -> T | ChatGLMError:
    """What `work` returns, or the `ChatGLMError` that it raises if errors are to be kept."""
    try:
        return work()
    except ChatGLMError as error:
        if not keep_errors:
            raise
        return error
