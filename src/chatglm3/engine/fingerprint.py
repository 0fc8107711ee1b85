"""Which weights these are: a short name for a model, the same in every process."""

from __future__ import annotations

import hashlib

import torch

from chatglm3.model.transformer import ChatGLMModel

_SAMPLES = 64  # values of each tensor; training or another quantisation changes nearly all of them


@torch.inference_mode()
def fingerprint(model: ChatGLMModel) -> str:
    """32 hexadecimal digits over the names, shapes, dtypes and 64 evenly spaced values of every tensor.

    Two checkpoints that differ in a few single weights may have the same one.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.endswith("inv_freq"):  # never used
            continue
        flat = tensor.reshape(-1)
        step = max(1, flat.numel() // _SAMPLES)
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(flat[::step].cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
