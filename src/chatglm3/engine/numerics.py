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

    def hook(name: str) -> Any:
        return lambda _module, _inputs, output: _check(name, output)

    handles = [module.register_forward_hook(hook(name)) for name, module in model.named_modules()]
    try:
        ids = torch.tensor([list(token_ids)], device=model.device)
        positions = torch.arange(ids.shape[1], device=model.device)[None]
        hidden = model.hidden(ids, positions, [(model.new_concat_cache(1), ids.shape[1])])
        _check("transformer.output_layer", model.transformer.output_layer.forward(hidden[:, -1]), ids.shape[1] - 1)
    except _FoundError as found:
        return str(found)
    finally:
        for handle in handles:
            handle.remove()
    return f"a logit is NaN or infinite, but not when computed again: the device or its memory is at fault; {_ADVICE}"


def _check(name: str, output: Any, position: int | None = None) -> None:
    if isinstance(output, Tensor) and not torch.isfinite(output).all():
        if position is None:  # [1, tokens, ...], or [tokens, ...] in a P-Tuning prefix
            bad = (~torch.isfinite(output)).nonzero()[0]
            position = int(bad[1]) if output.dim() > 2 else int(bad[0])
        raise _FoundError(f"NaN or infinite values first appear in {name} at position {position}; {_ADVICE}")
