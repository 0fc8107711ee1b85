"""The official classes' call shapes: an official script runs after changing one import line.

    from chatglm3.compat import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained("nano", trust_remote_code=True)
    model = AutoModel.from_pretrained("nano", trust_remote_code=True).eval()
    response, history = model.chat(tokenizer, "你好", history=[])

No remote code is ever run, and no part of transformers is needed. New programs are better served by `chatglm3.load`.
"""

from __future__ import annotations

from chatglm3.compat.auto import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from chatglm3.compat.classifier import ChatGLMForSequenceClassification
from chatglm3.compat.encoding import BatchEncoding
from chatglm3.compat.model import ChatGLMForConditionalGeneration
from chatglm3.compat.tokenizer import ChatGLMTokenizer

__all__ = [
    "AutoConfig",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForSequenceClassification",
    "AutoTokenizer",
    "BatchEncoding",
    "ChatGLMForConditionalGeneration",
    "ChatGLMForSequenceClassification",
    "ChatGLMTokenizer",
]
