"""The cross entropy of many positions over a large vocabulary, a few positions at a time.

The scores of 3,000 tokens over 65,024 ids take 780 MB in fp32, and the backward pass would want them again. Here the
gradient of a chunk is computed with its loss, so that only one chunk's scores exist at any time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from chatglm3.kernels.layout import dequantize
from chatglm3.kernels.products import linear
from chatglm3.model.linear import GroupedLinear
from chatglm3.model.transformer import ChatGLMModel

CHUNK_BYTES = 64 << 20
"""Size of the fp32 scores of a chunk."""


def target_loss(model: ChatGLMModel, hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The sum of the cross entropies, fp32, of `targets` [n] behind the hidden states [n, h] of `model.hidden`.

    Each is multiplied by its weight, `weights` [n].
    """
    layer = model.transformer.output_layer
    weight = dequantize(layer.packed, hidden.dtype) if isinstance(layer, GroupedLinear) else layer.weight
    loss: Tensor = _ChunkedCrossEntropy.apply(hidden, weight, targets, weights)  # type: ignore[no-untyped-call]
    return loss


def chunk_rows(vocabulary: int) -> int:
    """Positions of a chunk."""
    return max(1, CHUNK_BYTES // (4 * vocabulary))


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """The summed loss; the gradients of it are kept for the backward pass, which only scales them."""
        loss = torch.zeros((), device=hidden.device)
        hidden_grad = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        weight_grad = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        size = chunk_rows(weight.shape[0])
        for start in range(0, len(targets), size):
            chunk = slice(start, start + size)
            part, wanted, counts = hidden[chunk], targets[chunk], weights[chunk]
            scores = linear(part, weight, None).float()
            total = scores.logsumexp(-1)
            loss += ((total - scores.gather(1, wanted[:, None]).squeeze(1)) * counts).sum()
            if hidden_grad is None and weight_grad is None:
                continue
            slope = scores.sub_(total[:, None]).exp_()
            slope[torch.arange(len(wanted), device=slope.device), wanted] -= 1
            slope = slope.to(hidden.dtype)
            column = counts[:, None].to(hidden.dtype)
            if hidden_grad is not None:
                hidden_grad[chunk] = (slope @ weight) * column
            if weight_grad is not None:
                weight_grad += slope.T @ (part * column)
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.weight_dtype = weight.dtype
        return loss

    @staticmethod
    def backward(ctx: Any, loss_grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """The kept gradients times that of the loss."""
        hidden_grad, weight_grad = ctx.saved_tensors
        return (
            None if hidden_grad is None else (hidden_grad.float() * loss_grad).to(hidden_grad.dtype),
            None if weight_grad is None else (weight_grad * loss_grad).to(ctx.weight_dtype),
            None,
            None,
        )
