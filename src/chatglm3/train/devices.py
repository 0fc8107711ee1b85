"""Where a run computes, and in which precision: accelerate, set up from the config.

One process or many, one GPU or many, FSDP or DeepSpeed: `accelerate launch` decides, and the loop is the same. This is
the one module that imports accelerate.
"""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import DistributedType, GradientAccumulationPlugin
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from chatglm3.errors import TrainingError
from chatglm3.model.config import ModelConfig
from chatglm3.model.placement import choose_device, choose_dtype
from chatglm3.train.config import TrainConfig

__all__ = [
    "Accelerator",
    "base_dtype",
    "fill_deepspeed",
    "is_sharded",
    "keep_frozen",
    "make_accelerator",
    "training_device",
    "training_dtype",
    "uses_deepspeed",
]

_MIXED = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}


def training_device(config: TrainConfig) -> torch.device:
    """The kind of device that the run computes on."""
    return torch.device("cpu") if config.device == "cpu" else choose_device("auto")


def training_dtype(config: TrainConfig, model: ModelConfig, device: torch.device) -> torch.dtype:
    """The dtype of frozen weights and of the products; what is trained is fp32 in any case.

    "auto" is bfloat16 on a GPU that has it and float16 on one that has not; on a CPU what `load` takes there.
    """
    if config.dtype == "auto" and device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    dtype = choose_dtype(model, device, "float32" if config.dtype == "auto" and device.type == "mps" else config.dtype)
    if dtype == torch.float16 and device.type == "cpu":
        raise TrainingError("dtype=float16 needs a GPU for training; use bfloat16 or float32")
    return dtype


def make_accelerator(config: TrainConfig, dtype: torch.dtype, model: ModelConfig) -> Accelerator:
    """The accelerator of this process. Products run in `dtype` by autocast where weights are fp32."""
    for state in (AcceleratorState, GradientState):  # of an earlier run in this process
        state._reset_state()
    sharded = any(os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true" for name in ("FSDP", "DEEPSPEED"))
    plugin = _deepspeed(config, dtype, model)
    if config.optimizer == "muon" and (sharded or plugin is not None):
        raise TrainingError("optimizer=muon needs whole matrices, and FSDP and DeepSpeed cut them; use optimizer=adamw")
    if config.optimizer == "muon" and dtype == torch.float16:
        raise TrainingError("optimizer=muon has no loss scaling for float16; use dtype=bfloat16, or optimizer=adamw")
    autocast = config.method == "full" or dtype == torch.float16 or sharded or plugin is not None
    return Accelerator(
        cpu=training_device(config).type == "cpu",  # also where there is no GPU, so that processes find each other
        mixed_precision=_MIXED[dtype] if autocast else "no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=config.accumulation),
        deepspeed_plugin=plugin,
    )


def keep_frozen(network: nn.Module) -> None:
    """Have DDP send nothing that is not trained: every process has read the same files.

    It would send the integers of quantised weights, which are buffers, before each pass.
    """
    trained = {name for name, weight in network.named_parameters() if weight.requires_grad}
    frozen = [name for name in network.state_dict() if name not in trained]
    wrapper: Any = DistributedDataParallel
    wrapper._set_params_and_buffers_to_ignore_for_model(network, frozen)


def base_dtype(config: TrainConfig, dtype: torch.dtype, accelerator: Accelerator) -> torch.dtype:
    """The dtype that the model is loaded in: fp32 where all of it is trained, and for FSDP, which wants one dtype."""
    whole = config.method == "full" or accelerator.distributed_type == DistributedType.FSDP
    return torch.float32 if whole else dtype


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether each process holds a part of the weights only (FSDP, DeepSpeed)."""
    return accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)


def uses_deepspeed(config: TrainConfig) -> bool:
    """Whether the config's DeepSpeed file is used: there is one, and a GPU."""
    return config.deepspeed is not None and training_device(config).type == "cuda"


def fill_deepspeed(words: dict[str, Any], config: TrainConfig, dtype: torch.dtype, hidden_size: int) -> dict[str, Any]:
    """A DeepSpeed configuration with its "auto" values filled in and without optimizer and schedule, which are ours."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    known = {
        "train_micro_batch_size_per_gpu": config.batch_size,
        "gradient_accumulation_steps": config.accumulation,
        "train_batch_size": config.batch_size * config.accumulation * processes,
        "gradient_clipping": config.clip or 0.0,
    }
    filled = {key: value for key, value in words.items() if key not in ("optimizer", "scheduler")}
    filled |= known
    for name, kind in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
        filled[name] = {**filled.get(name, {}), "enabled": dtype == kind}
    sizes = {
        "reduce_bucket_size": hidden_size**2,
        "stage3_prefetch_bucket_size": int(0.9 * hidden_size**2),
        "stage3_param_persistence_threshold": 10 * hidden_size,
    }
    zero = filled.get("zero_optimization", {})
    filled["zero_optimization"] = {key: sizes.get(key) if value == "auto" else value for key, value in zero.items()}
    return filled


def _deepspeed(config: TrainConfig, dtype: torch.dtype, model: ModelConfig) -> DeepSpeedPlugin | None:
    if config.deepspeed is None or not uses_deepspeed(config):
        return None
    if find_spec("deepspeed") is None:
        raise TrainingError(f"{config.deepspeed} needs DeepSpeed: pip install deepspeed, or set deepspeed=null")
    return DeepSpeedPlugin(hf_ds_config=fill_deepspeed(_read(config.deepspeed), config, dtype, model.hidden_size))


def _read(file: Path) -> dict[str, Any]:
    try:
        words = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TrainingError(f"{file} cannot be read ({error}); deepspeed names a JSON file") from None
    if not isinstance(words, dict):
        raise TrainingError(f"{file}: a JSON object was expected")
    return words
