"""The random model that the tests of files and adapters save, load and compare."""

from __future__ import annotations

import torch
from torch import Tensor

from chatglm3.model.config import ModelConfig
from chatglm3.model.transformer import ChatGLMModel
from tiny_model import tiny_config, tiny_model

CONFIG = tiny_config(512)


def random_model(config: ModelConfig = CONFIG, dtype: torch.dtype = torch.float16) -> ChatGLMModel:
    """The same weights at every call, rounded to float16 and kept as `dtype`."""
    return tiny_model(config).half().to(dtype)


def logits_of(model: ChatGLMModel, tokens: int = 9) -> Tensor:
    """Logits of a fixed prompt, for comparing models."""
    logits: Tensor = model(torch.arange(3, 3 + tokens)[None]).logits
    return logits
