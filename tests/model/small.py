"""The random model that the tests of files and adapters save, load and compare."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from chatglm3.model.config import ModelConfig
from chatglm3.model.saving import save_model
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


def save_large_model(folder: Path, layout: str) -> int:
    """A float16 model that memory is measured on, as "safetensors" or "bin"; returns the bytes of its weights."""
    with torch.device("meta"):
        model = ChatGLMModel(replace(CONFIG, hidden_size=2048, padded_vocab_size=16_384)).half()
    model.to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.fill_(0.01)
    save_model(model, folder)
    if layout == "bin":
        torch.save(dict(model.state_dict()), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    return sum(tensor.nbytes for tensor in model.state_dict().values())
