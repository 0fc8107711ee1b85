"""A tiny random model whose ids without a meaning would win, and an engine for it."""

from __future__ import annotations

import pytest
import torch

from chatglm3.engine.engine import Engine
from chatglm3.model.transformer import ChatGLMModel
from tiny_model import tiny_config, tiny_model

VOCABULARY = 256


@pytest.fixture(scope="session")
def model() -> ChatGLMModel:
    """`VOCABULARY` ids with a meaning and eight without, whose logits are eight times as wide."""
    model = tiny_model(tiny_config(VOCABULARY + 8))
    with torch.no_grad():
        model.get_parameter("transformer.output_layer.weight")[VOCABULARY:] *= 8
    return model


@pytest.fixture
def engine(model: ChatGLMModel) -> Engine:
    return Engine(model, VOCABULARY)
