"""Random adapters on disk, in the formats that PEFT and the official kits write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from chatglm3.model.config import ModelConfig
from chatglm3.model.transformer import ChatGLMModel

TARGETS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")


def lora_folder(
    folder: Path, config: ModelConfig, *, seed: int = 1, r: int = 2, targets: Sequence[str] = TARGETS, size: float = 0.2
) -> Path:
    """LoRA beside the `targets` of every block; numbers of about `size` in both matrices."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    with torch.device("meta"):
        model = ChatGLMModel(config)
    for name, module in model.named_modules():
        layer: Any = module
        if name.rpartition(".")[2] in targets:
            a, b = (
                torch.randn(r, layer.in_features, generator=generator),
                torch.randn(layer.out_features, r, generator=generator),
            )
            tensors[f"base_model.model.{name}.lora_A.weight"] = a * size
            tensors[f"base_model.model.{name}.lora_B.weight"] = b * size
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": r, "lora_alpha": 2 * r, "target_modules": list(targets)}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def prefix_folder(folder: Path, config: ModelConfig, *, seed: int = 1, length: int = 4) -> Path:
    """A P-Tuning v2 prefix without a projection."""
    width = config.num_layers * 2 * config.multi_query_group_num * config.kv_channels
    table = torch.randn(length, width, generator=torch.Generator().manual_seed(seed))
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"transformer.prefix_encoder.embedding.weight": table}, folder / "model.safetensors")
    return folder
