"""What is trained of a network, and the files it is kept in: LoRA, P-Tuning v2, or all weights.

Trained weights are fp32. Each method's folder can be used as it is: LoRA in PEFT's format and a P-Tuning prefix under
its official names go to `--adapter`, a full model goes to `--model`.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch import Tensor, nn

from chatglm3.errors import CheckpointError, TrainingError
from chatglm3.model.checkpoint import load_model
from chatglm3.model.config import ModelConfig
from chatglm3.model.lora import LoraLinear
from chatglm3.model.prefix_encoder import PrefixEncoder
from chatglm3.model.saving import save_model
from chatglm3.model.transformer import ChatGLMModel
from chatglm3.train.config import LoraSettings, PtuningSettings, TrainConfig

_PEFT = "base_model.model."
_LORA_FILE, _PREFIX_FILE = "adapter_model.safetensors", "model.safetensors"
_CONFIG_FILE = "adapter_config.json"


def prepare_model(model: ChatGLMModel, config: TrainConfig) -> None:
    """Add what the method trains, in fp32, and let gradients flow to that alone.

    New weights are random as `config.seed` says. Raises `TrainingError` for a method that the model cannot have.
    """
    model.requires_grad_(False)
    if hasattr(model.transformer, "prefix_encoder"):
        raise TrainingError("the model has a P-Tuning prefix inside; train a model without one")
    torch.manual_seed(config.seed)
    if config.method == "lora":
        add_lora(model, config.lora)
    elif config.method == "ptuning":
        add_prefix(model, config.ptuning)
    else:
        _train_all(model)
    if config.hidden_dropout:
        add_dropout(model, config.hidden_dropout)
    model.recompute = config.gradient_checkpointing
    model.train()


def add_lora(model: ChatGLMModel, settings: LoraSettings) -> None:
    """Put an update that changes nothing yet beside each target layer of every block (A random, B zero, as in PEFT)."""
    for block in model.blocks:
        for parent in (block.self_attention, block.mlp):
            for name, base in list(parent.named_children()):
                if name in settings.targets:
                    setattr(parent, name, _new_lora(base, settings))


def add_prefix(model: ChatGLMModel, settings: PtuningSettings) -> None:
    """Put learned keys and values before every row, random as in the official kit."""
    encoder = PrefixEncoder(replace(model.config, prefix_projection=settings.projection), settings.length)
    model.transformer.prefix_encoder = encoder.to(model.device, torch.float32)


def add_dropout(model: ChatGLMModel, share: float) -> None:
    """Drop out, while the model is trained, of what each attention and each MLP adds to the stream."""

    def drop(module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return F.dropout(output, share, module.training)

    for block in model.blocks:
        for part in (block.self_attention, block.mlp):
            part.register_forward_hook(drop)


def trained_weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """What gradients flow to, by name."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def trained_count(config: TrainConfig, model: ChatGLMModel) -> int:
    """How many numbers are trained. `model` may be on the device "meta"."""
    prepare_model(model, config)
    return sum(weight.numel() for weight in trained_weights(model).values())


def save_trained(
    model: ChatGLMModel, weights: Mapping[str, Tensor], config: TrainConfig, folder: Path, base: Path
) -> None:
    """Write the trained `weights` of `model` into `folder`, ready to be used.

    `base` is the folder that the model came from. Raises OSError, or `CheckpointError` if the disk refuses.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kept = {name: weight.detach().to("cpu").contiguous() for name, weight in weights.items()}
    if config.method == "lora":
        tensors = {f"{_PEFT}{name}.weight": weight for name, weight in kept.items()}
        _write(folder, config, tensors)
    elif config.method == "ptuning":
        _write(folder, config, kept)
    else:
        with torch.device("meta"):
            whole = ChatGLMModel(model.config)
        whole.load_state_dict({**dict(model.named_buffers()), **kept}, assign=True)
        save_model(whole, folder)
        _copy_tokenizer(base, folder)


def load_trained(model: ChatGLMModel, config: TrainConfig, folder: Path) -> None:
    """Read what `save_trained` wrote into a model that `prepare_model` made, bit for bit.

    Raises `CheckpointError` if the files are not of such a model.
    """
    files = sorted(folder.glob("model*.safetensors")) if config.method == "full" else [folder / _file(config)]
    stored = {_own_name(name): tensor for file in files for name, tensor in _read(file).items()}
    wanted = trained_weights(model)
    for name, weight in wanted.items():
        if name not in stored or stored[name].shape != weight.shape:
            found = list(stored[name].shape) if name in stored else "missing"
            raise CheckpointError(f"{folder}: {name} is {found} where this run has {list(weight.shape)}")
        weight.data.copy_(stored[name])


def export(checkpoint: Path, config: TrainConfig, base: ModelConfig) -> Path:
    """Put what is to be used of a checkpoint beside it: the folder `adapter`, or `model` in the base's dtype."""
    target = config.output / ("model" if config.method == "full" else "adapter")
    temporary = target.with_name(f"{target.name}.incomplete")
    shutil.rmtree(temporary, ignore_errors=True)
    if config.method == "full":
        dtype = str(base.extra.get("dtype", base.torch_dtype))
        save_model(load_model(checkpoint, device="cpu", dtype=dtype), temporary)
        _copy_tokenizer(checkpoint, temporary)
    else:
        temporary.mkdir(parents=True)
        _write(temporary, config, _read(checkpoint / _file(config)))
    shutil.rmtree(target, ignore_errors=True)
    temporary.replace(target)
    return target


def _train_all(model: ChatGLMModel) -> None:
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            raise TrainingError("full fine-tuning changes all weights, and these are quantised; use method=lora")
    model.float().requires_grad_(True)


def _new_lora(base: nn.Module, settings: LoraSettings) -> LoraLinear:
    """`base` with a new update; `base` may be quantised."""
    layer: Any = base
    device = next(iter(base.state_dict().values())).device
    a = torch.empty(settings.rank, layer.in_features)
    nn.init.kaiming_uniform_(a, a=math.sqrt(5))
    b = torch.zeros(layer.out_features, settings.rank)
    lora = LoraLinear(base, a.to(device), b.to(device), settings.alpha / settings.rank, settings.dropout)
    lora.lora_A.requires_grad_(True)
    lora.lora_B.requires_grad_(True)
    return lora


def _own_name(name: str) -> str:
    return name.removeprefix(_PEFT).removesuffix(".weight") if name.startswith(_PEFT) else name


def _lora_config(config: TrainConfig) -> dict[str, Any]:
    """adapter_config.json as PEFT writes and reads it."""
    lora = config.lora
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.model,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": list(lora.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }


def _prefix_config(config: TrainConfig) -> dict[str, Any]:
    """What a prefix is; its length and projection can be seen in its tensors as well."""
    return {
        "peft_type": "PREFIX_TUNING",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config.model,
        "num_virtual_tokens": config.ptuning.length,
        "prefix_projection": config.ptuning.projection,
        "inference_mode": True,
    }


def _file(config: TrainConfig) -> str:
    return _LORA_FILE if config.method == "lora" else _PREFIX_FILE


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except Exception as error:  # safetensors has errors of its own
        raise CheckpointError(f"{file} cannot be read ({error}); use an earlier checkpoint") from None


def _write(folder: Path, config: TrainConfig, tensors: Mapping[str, Tensor]) -> None:
    """An adapter: its tensors, and what it is."""
    words = _lora_config(config) if config.method == "lora" else _prefix_config(config)
    (folder / _file(config)).write_bytes(save(dict(tensors), metadata={"format": "pt"}))
    (folder / _CONFIG_FILE).write_text(json.dumps(words, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _copy_tokenizer(source: Path, target: Path) -> None:
    for name in ("tokenizer.model", "tokenizer_config.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
