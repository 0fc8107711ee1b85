"""LoRA (Hu et al., 2021) beside a linear layer, and the reading of PEFT's adapter files."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatglm3.errors import AdapterError
from chatglm3.model.transformer import ChatGLMModel

TARGETS = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")
"""The layers of a block that an adapter may change."""

_PREFIX = "base_model.model."
_MOST_RANK = 2**20
# Options of PEFT that change what the two matrices mean, and the value each has without them.
_UNSUPPORTED = {
    "use_dora": False,
    "fan_in_fan_out": False,
    "bias": "none",
    "alpha_pattern": {},
    "rank_pattern": {},
    "modules_to_save": None,
    "lora_bias": False,
}


class LoraLinear(nn.Module):
    """A linear layer and its update: base(x) + scale * B(A(x)), A and B computed in their own dtype.

    While it is trained, the update sees `x` with a share `dropout` of it set to zero.
    """

    def __init__(self, base: nn.Module, a: Tensor, b: Tensor, scale: float, dropout: float = 0.0) -> None:
        """`a` is [r, in], `b` [out, r]."""
        super().__init__()
        self.base = base
        self.lora_A = nn.Parameter(a, requires_grad=False)
        self.lora_B = nn.Parameter(b, requires_grad=False)
        self.scale, self.dropout = scale, dropout

    def forward(self, x: Tensor) -> Tensor:
        """`x` [..., in] to [..., out]."""
        out: Tensor = self.base(x)
        seen = x.to(self.lora_A.dtype)
        if self.training and self.dropout:
            seen = F.dropout(seen, self.dropout)
        update = seen @ self.lora_A.T @ self.lora_B.T
        return out + (self.scale * update).to(out.dtype)

    def merged(self) -> nn.Linear:
        """The base layer with the update added to its weight, in fp32 and rounded once.

        Raises `AdapterError` if the layer is quantised.
        """
        if not isinstance(self.base, nn.Linear):
            raise AdapterError("an adapter cannot be merged into a quantised layer; merge first, then quantise")
        weight = self.base.weight
        update = self.lora_B.float() @ self.lora_A.float()
        weight.data.copy_(weight.float() + self.scale * update)
        return self.base


def read_scale(config: Mapping[str, Any], source: Path) -> tuple[int, float]:
    """The rank that adapter_config.json names, and the factor on B A that it asks for.

    Raises `AdapterError` for an option that this package does not have.
    """
    for option, plain in _UNSUPPORTED.items():
        if config.get(option, plain) not in (plain, None):
            raise AdapterError(f"{source}: {option} = {json.dumps(config[option])} is not supported")
    r, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(r, int) or not isinstance(alpha, int | float) or not 1 <= r <= _MOST_RANK:
        raise AdapterError(f"{source}: r and lora_alpha must be numbers, not {r!r} and {alpha!r}")
    if not abs(alpha) <= sys.float_info.max:  # NaN neither
        raise AdapterError(f"{source}: lora_alpha must be a finite number, not {alpha!r}")
    return r, float(alpha) / (math.sqrt(r) if config.get("use_rslora") else r)


def pair_up(
    tensors: Mapping[str, Tensor], model: ChatGLMModel, source: Path, r: int, advice: str
) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B for each module name of `model`.

    `AdapterError` names the first one that is missing, unknown or misshapen (then it ends in `advice`), is not of the
    rank `r`, or holds what no matrix may hold.
    """
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        module, _, half = name.removeprefix(_PREFIX).replace(".default.", ".").removesuffix(".weight").rpartition(".")
        if half not in ("lora_A", "lora_B") or module.rpartition(".")[2] not in TARGETS:
            raise AdapterError(f"{source}: {name} is not a LoRA tensor of this model")
        halves.setdefault(module, {})[half] = tensor
    misfits = [misfit for module, pair in halves.items() for misfit in _misfits(module, pair, model)]
    if misfits:
        more = f", and {len(misfits) - 1} more" if len(misfits) > 1 else ""
        raise AdapterError(f"{source}: {misfits[0]}{more}; {advice}")
    faults = [fault for module, pair in halves.items() for fault in _faults(module, pair, r)]
    if faults or not halves:
        raise AdapterError(f"{source}: {faults[0] if faults else 'holds no LoRA tensors'}")
    return {module: (pair["lora_A"], pair["lora_B"]) for module, pair in halves.items()}


def _misfits(module: str, pair: Mapping[str, Tensor], model: ChatGLMModel) -> Iterator[str]:
    """How a pair differs from what this model has."""
    try:
        layer: Any = model.get_submodule(module)
    except AttributeError:
        yield f"{module} is not a layer of this model"
        return
    ends = {"lora_A": (-1, layer.in_features), "lora_B": (0, layer.out_features)}
    if any(tensor.shape[ends[half][0]] != ends[half][1] for half, tensor in pair.items()):
        shapes = " and ".join(f"{half[-1]} {list(tensor.shape)}" for half, tensor in pair.items())
        yield f"{module}: {shapes} do not fit a layer from {layer.in_features} to {layer.out_features}"


def _faults(module: str, pair: Mapping[str, Tensor], r: int) -> Iterator[str]:
    """What is wrong with a pair for any model."""
    if len(pair) < 2:
        yield f"{module} has {next(iter(pair))} only"
        return
    a, b = pair["lora_A"], pair["lora_B"]
    if a.dim() != 2 or b.dim() != 2 or {a.shape[0], b.shape[1]} != {r}:
        yield f"{module}: A {list(a.shape)} and B {list(b.shape)} are not of the rank r = {r} in adapter_config.json"
    elif a.dtype != b.dtype:
        yield f"{module}: A is {a.dtype} and B {b.dtype}, and both must be the same"
    elif not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        yield f"{module} holds NaN or infinite values"
