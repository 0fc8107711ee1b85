"""Writes a model folder in the official layout: fp16 safetensors, config.json and the tokenizer's files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save

from chatglm3.model.transformer import ChatGLMModel

CONFIG = {
    "apply_query_key_layer_scaling": True,
    "attention_dropout": 0.0,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "hidden_dropout": 0.0,
    "original_rope": True,
    "use_cache": True,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
TOKENIZER_CONFIG = {"tokenizer_class": "ChatGLMTokenizer", "remove_space": False, "do_lower_case": False}


def export(model: ChatGLMModel, tokenizer: Path, folder: Path) -> None:
    """Write the files one by one, each replaced in one move, so that a reader never sees half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.detach().to(torch.float16).contiguous() for name, tensor in model.state_dict().items()}
    part = folder / "part"
    part.write_bytes(save(weights, metadata={"format": "pt"}))
    part.replace(folder / "model.safetensors")
    shutil.copyfile(tokenizer, part)
    part.replace(folder / "tokenizer.model")
    for name, values in (("config.json", model.config.to_dict() | CONFIG), ("tokenizer_config.json", TOKENIZER_CONFIG)):
        part.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(folder / name)
