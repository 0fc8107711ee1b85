"""Where a number stopped being one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from chatglm3.model.transformer import ChatGLMModel

_ADVICE = "the checkpoint may be damaged, or float16 too narrow; try dtype='bfloat16' or 'float32'"


class _FoundError(Exception):
    """Ends the diagnosing forward pass at the first bad module."""


@torch.inference_mode()
def first_bad_module(model: ChatGLMModel, token_ids: Sequence[int]) -> str:
    """Run `token_ids` again without a cache: which module first gives NaN or infinity, and at which position."""

    def check(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and not torch.isfinite(output).all():
            bad = (~torch.isfinite(output)).nonzero()[0]
            position = int(bad[1]) if output.dim() > 2 else int(bad[0])
            raise _FoundError(f"NaN or infinite values first appear in {name} at position {position}; {_ADVICE}")

    def hook(name: str) -> Any:
        return lambda _module, _inputs, output: check(name, output)

    leaves = [(name, module) for name, module in model.named_modules() if not any(module.children())]
    handles = [module.register_forward_hook(hook(name)) for name, module in leaves]
    try:
        model(torch.tensor([list(token_ids)], device=model.device))
    except _FoundError as found:
        return str(found)
    finally:
        for handle in handles:
            handle.remove()
    return f"a logit is NaN or infinite, but not when computed again: the device or its memory is at fault; {_ADVICE}"
