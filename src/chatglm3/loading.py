"""`load`: a name or a folder to a model that answers."""

from __future__ import annotations

from pathlib import Path

from chatglm3.chat import ChatGLM
from chatglm3.model.adapters import load_adapter
from chatglm3.model.checkpoint import load_model
from chatglm3.model.config import ModelConfig
from chatglm3.model.hub import resolve
from chatglm3.model.quantize import group_official
from chatglm3.tokenizer import Tokenizer


def load(
    name: str | Path,
    *,
    device: str = "auto",
    dtype: str = "auto",
    quantize: int | None = None,
    adapter: str | Path | None = None,
    max_context: int | None = None,
    cache_bytes: int | None = None,
) -> ChatGLM:
    """Load "nano", "nano-base", a folder, "zai-org/chatglm3-6b" or "modelscope:ZhipuAI/chatglm3-6b".

    `device` and `dtype` "auto" choose what this machine computes well; `quantize` 8 or 4 stores each weight in as many
    bits as it is read, embedding and output layer in 8; `adapter` is a folder with a LoRA or P-Tuning v2 adapter;
    `max_context` bounds prompt and answer in tokens, `cache_bytes` the keys and values of all requests together
    (default: half of the memory that is free). Raises DownloadError, CheckpointError, ContextLengthError,
    TokenizerError, AdapterError or DeviceError.
    """
    folder = resolve(name)
    # What the config says comes first: a folder that is no ChatGLM3 would give misleading errors, or cost a long load.
    ModelConfig.from_pretrained(folder).context_limit(max_context)
    tokenizer = Tokenizer.from_pretrained(folder)
    model = load_model(folder, device=device, dtype=dtype, quantize=quantize)
    if model.config.quantization_bit and model.device.type == "cpu":
        group_official(model)  # the kernels know one layout
    if adapter is not None:
        load_adapter(model, adapter)
    return ChatGLM(model, tokenizer, name=str(name), max_context=max_context, cache_bytes=cache_bytes)
