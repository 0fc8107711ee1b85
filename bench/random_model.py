"""Models of the real ChatGLM3-6B width with random weights: what speed and memory are measured on."""

import torch

from chatglm3.model.config import ModelConfig
from chatglm3.model.transformer import ChatGLMModel

REAL_SHAPE = {
    "model_type": "chatglm",
    "num_layers": 28,
    "padded_vocab_size": 65024,
    "hidden_size": 4096,
    "ffn_hidden_size": 13696,
    "kv_channels": 128,
    "num_attention_heads": 32,
    "seq_length": 8192,
    "multi_query_attention": True,
    "multi_query_group_num": 2,
    "add_qkv_bias": True,
    "torch_dtype": "float16",
}


def real_config(layers: int) -> ModelConfig:
    """The shape of ChatGLM3-6B with fewer (or all 28) layers."""
    return ModelConfig.from_dict({**REAL_SHAPE, "num_layers": layers})


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
