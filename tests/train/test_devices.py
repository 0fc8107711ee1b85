"""Where a run computes, in which precision, and what DeepSpeed is told."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from chatglm3.errors import TrainingError
from chatglm3.model.config import CHATGLM3_6B
from chatglm3.train.config import TrainConfig, make_config
from chatglm3.train.devices import fill_deepspeed, make_accelerator, training_device, training_dtype
from tiny_model import tiny_config

BASE: dict[str, Any] = {"model": "nano", "data": {"train": "train.jsonl"}, "output": "out"}


def test_a_deepspeed_file_is_filled_in() -> None:
    config = make_config({**BASE, "batch_size": 2, "accumulation": 3, "clip": 0.5, "deepspeed": "ds.json"}, "test")
    words = {
        "train_micro_batch_size_per_gpu": "auto",
        "bf16": {"enabled": "auto"},
        "optimizer": {"type": "AdamW"},
        "zero_optimization": {"stage": 3, "reduce_bucket_size": "auto", "sub_group_size": 1e9},
    }
    filled = fill_deepspeed(words, config, torch.bfloat16, 64)
    assert "auto" not in json.dumps(filled) and "optimizer" not in filled
    assert (filled["train_micro_batch_size_per_gpu"], filled["gradient_accumulation_steps"]) == (2, 3)
    assert (filled["gradient_clipping"], filled["bf16"], filled["fp16"]) == (0.5, {"enabled": True}, {"enabled": False})
    assert filled["zero_optimization"] == {"stage": 3, "reduce_bucket_size": 4096, "sub_group_size": 1e9}


def test_muon_is_not_for_scaled_losses() -> None:
    config = make_config({**BASE, "method": "full", "optimizer": "muon"}, "test")
    with pytest.raises(TrainingError, match="no loss scaling"):
        make_accelerator(config, torch.float16, tiny_config(512))


def test_muon_is_not_for_weights_that_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config({**BASE, "method": "full", "optimizer": "muon"}, "test")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(TrainingError, match="use optimizer=adamw"):
        make_accelerator(config, torch.float32, tiny_config(512))


def test_where_and_in_what_precision() -> None:
    config = make_config({**BASE, "device": "cpu"}, "test")
    device, shape = training_device(config), tiny_config(300)
    assert training_dtype(config, shape, device) == torch.float32
    assert training_dtype(config_with("bfloat16"), CHATGLM3_6B, device) == torch.bfloat16
    with pytest.raises(TrainingError, match="dtype=float16 needs a GPU"):
        training_dtype(config_with("float16"), shape, device)
    for method, mixed in (("lora", "no"), ("full", "bf16")):
        settings = make_config({**BASE, "device": "cpu", "method": method}, "test")
        assert make_accelerator(settings, torch.bfloat16, shape).mixed_precision == mixed


def config_with(dtype: str) -> TrainConfig:
    return make_config({**BASE, "device": "cpu", "dtype": dtype}, "test")
