"""`from_pretrained` with the arguments that scripts give; one that is not listed raises TypeError and names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from chatglm3.compat.classifier import ChatGLMForSequenceClassification
from chatglm3.compat.config import OfficialConfig
from chatglm3.compat.model import ChatGLMForConditionalGeneration
from chatglm3.compat.tokenizer import ChatGLMTokenizer
from chatglm3.errors import CheckpointError, DeviceError
from chatglm3.model.checkpoint import load_classifier, load_model
from chatglm3.model.config import ModelConfig
from chatglm3.model.hub import resolve
from chatglm3.model.placement import choose_dtype
from chatglm3.tokenizer import Tokenizer


class AutoTokenizer:
    """Loads the tokenizer of a model."""

    @staticmethod
    def from_pretrained(
        name: str | Path,
        *,
        trust_remote_code: bool = False,  # noqa: ARG004 (no remote code is ever run)
        revision: str | None = None,
        encode_special_tokens: bool = False,
    ) -> ChatGLMTokenizer:
        """`name` as in `chatglm3.load`; `trust_remote_code` means nothing: no remote code is ever run."""
        folder = resolve(name, revision=revision)
        return ChatGLMTokenizer(Tokenizer.from_pretrained(folder), encode_special_tokens=encode_special_tokens)


class AutoConfig:
    """Loads the config of a model."""

    @staticmethod
    def from_pretrained(
        name: str | Path,
        *,
        trust_remote_code: bool = False,  # noqa: ARG004 (no remote code is ever run)
        revision: str | None = None,
    ) -> OfficialConfig:
        """`name` as in `chatglm3.load`; `trust_remote_code` means nothing."""
        return OfficialConfig(ModelConfig.from_pretrained(resolve(name, revision=revision)))


class AutoModel:
    """Loads a model that chats and generates. `AutoModelForCausalLM` is the same."""

    @staticmethod
    def from_pretrained(
        name: str | Path,
        *,
        trust_remote_code: bool = False,  # noqa: ARG004 (no remote code is ever run)
        revision: str | None = None,
        device: Any = None,
        device_map: Any = None,
        torch_dtype: str | torch.dtype | None = None,
        load_in_8bit: bool = False,
        load_in_4bit: bool = False,
        low_cpu_mem_usage: bool = True,  # noqa: ARG004 (loading always does without a second copy)
    ) -> ChatGLMForConditionalGeneration:
        """`name` as in `chatglm3.load`; `trust_remote_code` means nothing: no remote code is ever run.

        `device` or `device_map` is "auto" (the default: the best device, or all GPUs where one is too small), a device,
        or {"": device}. `torch_dtype` None and "auto" are what the device computes well. `load_in_8bit` and
        `load_in_4bit` quantise the weights as they are stored, so the integers are the official ones.
        """
        if load_in_8bit and load_in_4bit:
            raise CheckpointError("load_in_8bit and load_in_4bit are both given; give one of them")
        bits = 8 if load_in_8bit else 4 if load_in_4bit else 0
        folder = resolve(name, revision=revision)
        network = load_model(
            folder, device=_device(device, device_map), dtype="float16" if bits else torch_dtype or "auto"
        )
        has_tokenizer = (folder / "tokenizer.model").is_file()
        vocab_size = Tokenizer.from_pretrained(folder).vocab_size if has_tokenizer else None
        model = ChatGLMForConditionalGeneration(network.requires_grad_(True), vocab_size)
        if bits:
            model.quantize(bits).to(choose_dtype(network.config, network.device, torch_dtype or "auto"))
        return model


AutoModelForCausalLM = AutoModel


class AutoModelForSequenceClassification:
    """Loads a model with a classification head."""

    @staticmethod
    def from_pretrained(
        name: str | Path,
        *,
        trust_remote_code: bool = False,  # noqa: ARG004 (no remote code is ever run)
        revision: str | None = None,
        device: Any = None,
        device_map: Any = None,
        torch_dtype: str | torch.dtype | None = None,
    ) -> ChatGLMForSequenceClassification:
        """The arguments are those of `AutoModel.from_pretrained`; the checkpoint holds the head."""
        folder = resolve(name, revision=revision)
        network = load_classifier(folder, device=_device(device, device_map), dtype=torch_dtype or "auto")
        return ChatGLMForSequenceClassification(network.requires_grad_(True))


def _device(device: Any, device_map: Any) -> str:
    """The name of the one device, or "auto"."""
    if device is not None and device_map is not None:
        raise DeviceError("device and device_map are both given; give one of them")
    chosen = device_map if device is None else device
    if isinstance(chosen, dict):
        if list(chosen) != [""]:
            raise DeviceError("a device_map of single layers is not supported; use device_map='auto' or one device")
        chosen = chosen[""]
    if chosen is None:
        return "auto"
    return f"cuda:{chosen}" if isinstance(chosen, int) else str(chosen)
