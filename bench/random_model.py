"""Models of the real ChatGLM3-6B width with random weights: what speed and memory are measured on."""

from dataclasses import replace

import torch

from chatglm3.model.config import CHATGLM3_6B, ModelConfig
from chatglm3.model.transformer import ChatGLMModel


def real_config(layers: int) -> ModelConfig:
    """The shape of ChatGLM3-6B with fewer (or all 28) layers."""
    return replace(CHATGLM3_6B, num_layers=layers)


def random_model(layers: int, dtype: torch.dtype) -> ChatGLMModel:
    """A network of the real width on the CPU; small weights keep every activation finite."""
    with torch.device("meta"):
        model = ChatGLMModel(real_config(layers))
    model = model.to(dtype).to_empty(device="cpu").eval().requires_grad_(False)
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if name.endswith("layernorm.weight"):
            weight.fill_(1.0)
        else:
            weight.normal_(std=0.02)
    return model
