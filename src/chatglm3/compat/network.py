"""What both official model classes share: where the weights are, in which dtype, and the torch module beneath."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from typing_extensions import Self

from chatglm3.compat.config import OfficialConfig
from chatglm3.model.checkpoint import save_model
from chatglm3.model.placement import choose_device, choose_dtype
from chatglm3.model.quantize import quantize_linears
from chatglm3.model.transformer import ChatGLMModel


class OfficialModel:
    """A network with the official class's habits: every call below changes it in place and returns it.

    What is not defined here (`parameters`, `state_dict`, `transformer`, `device`, `dtype`) is that of the torch module.
    """

    def __init__(self, network: ChatGLMModel) -> None:
        self.network = network

    def __getattr__(self, name: str) -> Any:
        if name == "network":
            raise AttributeError(name)
        return getattr(self.network, name)

    @property
    def config(self) -> OfficialConfig:
        """The fields of config.json as attributes, read-only."""
        return OfficialConfig(self.network.config)

    def half(self) -> Self:
        """float16. On a machine with a CPU alone the dtype is kept, with a warning: few CPUs compute float16 fast.

        `.to(torch.float16)` and `from_pretrained(..., torch_dtype=torch.float16)` give it nevertheless.
        """
        if self.network.device.type == "cpu" and not torch.cuda.is_available():
            kept = str(self.network.dtype).removeprefix("torch.")
            message = f"half() is not done on a CPU, which computes float16 slowly: the model stays in {kept}"
            warnings.warn(message, stacklevel=2)
            return self
        return self.to(torch.float16)

    def bfloat16(self) -> Self:
        """bfloat16."""
        return self.to(torch.bfloat16)

    def float(self) -> Self:
        """float32."""
        return self.to(torch.float32)

    def cpu(self) -> Self:
        """Move to the CPU."""
        return self.to("cpu")

    def cuda(self, device: int | str | torch.device | None = None) -> Self:
        """Move to a CUDA device; `DeviceError` if there is none. Without a number a model on CUDA stays as it is."""
        if device is None and self.network.device.type == "cuda":
            return self
        return self.to("cuda" if device is None else device)

    def to(self, *targets: Any, device: Any = None, dtype: torch.dtype | None = None) -> Self:
        """Move to a device (a name, a CUDA number or a torch device), convert to a dtype, or both.

        Raises `DeviceError` for a device that does not exist, and for a dtype that is not a floating-point one of ours.
        """
        for target in (*targets, device, dtype):
            if isinstance(target, torch.dtype):
                self.network.to(choose_dtype(self.network.config, self.network.device, target))
            elif target is not None:
                self.network.to(choose_device(f"cuda:{target}" if isinstance(target, int) else str(target)))
        self._weights_changed()
        return self

    def quantize(self, bits: int) -> Self:
        """Store the linear layers as the official int8 (8) or int4 (4), on any device; else `CheckpointError`."""
        quantize_linears(self.network, bits)
        self._weights_changed()
        return self

    def eval(self) -> Self:
        """Evaluation mode, in which the model is loaded."""
        self.network.eval()
        return self

    def train(self, mode: bool = True) -> Self:
        """Training mode."""
        self.network.train(mode)
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Whether gradients are computed; they are, unless this is called with False."""
        self.network.requires_grad_(requires_grad)
        return self

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write config.json and the weights."""
        save_model(self.network, save_directory)

    def _weights_changed(self) -> None:
        """What was computed with the old weights is void."""
