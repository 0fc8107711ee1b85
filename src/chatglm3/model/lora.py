"""LoRA (Hu et al., 2021) beside a linear layer, and the reading of PEFT's adapter files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
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
# Options of PEFT that change what the two matrices mean, and the value each has without them.
_UNSUPPORTED = {
    "use_dora": False,
    "fan_in_fan_out": False,
    "bias": "none",
    "alpha_pattern": {},
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


def read_scale(config: Mapping[str, Any], source: Path) -> float:
    """The factor on B A that adapter_config.json asks for.

    Raises `AdapterError` for an option that this package does not have.
    """
    for option, plain in _UNSUPPORTED.items():
        if config.get(option, plain) not in (plain, None):
            raise AdapterError(f"{source}: {option} = {json.dumps(config[option])} is not supported")
    r, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(r, int) or not isinstance(alpha, int | float) or r < 1:
        raise AdapterError(f"{source}: r and lora_alpha must be numbers, not {r!r} and {alpha!r}")
    return float(alpha) / (math.sqrt(r) if config.get("use_rslora") else r)


def pair_up(tensors: Mapping[str, Tensor], model: ChatGLMModel, source: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B for each module name of `model`; `AdapterError` names what is missing, unknown or misshapen."""
    halves: dict[str, dict[str, Tensor]] = {}
    problems: list[str] = []
    for name, tensor in tensors.items():
        module, _, half = name.removeprefix(_PREFIX).replace(".default.", ".").removesuffix(".weight").rpartition(".")
        if half in ("lora_A", "lora_B") and module.rpartition(".")[2] in TARGETS:
            halves.setdefault(module, {})[half] = tensor
        else:
            problems.append(f"{name} is not a LoRA tensor of this model")
    for module, pair in halves.items():
        problems.extend(_misfits(module, pair, model))
    if problems or not halves:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise AdapterError(f"{source}: {'; '.join(problems[:5]) or 'holds no LoRA tensors'}{more}")
    return {module: (pair["lora_A"], pair["lora_B"]) for module, pair in halves.items()}


def _misfits(module: str, pair: Mapping[str, Tensor], model: ChatGLMModel) -> list[str]:
    try:
        layer: Any = model.get_submodule(module)
    except AttributeError:
        return [f"{module} is not a layer of this model"]
    if len(pair) < 2:
        return [f"{module} has {next(iter(pair))} only"]
    a, b = pair["lora_A"], pair["lora_B"]
    wanted = [layer.in_features, layer.out_features]
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1] or [a.shape[1], b.shape[0]] != wanted:
        return [f"{module}: A {list(a.shape)} and B {list(b.shape)} do not fit a layer from {wanted[0]} to {wanted[1]}"]
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        return [f"{module} holds NaN or infinite values"]
    return []
