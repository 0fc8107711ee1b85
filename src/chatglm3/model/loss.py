"""Training losses, computed in fp32 whatever the dtype of the logits."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from chatglm3.errors import ChatGLMError

IGNORED = -100
"""A label that does not count."""


def causal_lm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of each position's logits [b, s, vocabulary] with the next position's label [b, s].

    Labels of -100 do not count; a batch without any other gives NaN.
    """
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=IGNORED)


def classification_loss(logits: Tensor, labels: Tensor, problem_type: str) -> Tensor:
    """The loss of a classification head's `logits` [b, labels].

    `problem_type` says what `labels` are: "single_label_classification", classes [b] (cross entropy);
    "multi_label_classification", zeros and ones [b, labels] (binary cross entropy); "regression", numbers [b, labels],
    or [b] with one label (mean squared error).
    """
    logits = logits.float()
    if problem_type == "single_label_classification":
        return F.cross_entropy(logits, labels)
    if problem_type == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels.float())
    if problem_type == "regression":
        return F.mse_loss(logits, labels.float().view_as(logits))
    raise ChatGLMError(
        f"problem_type {problem_type!r} is unknown; use single_label_classification, multi_label_classification "
        "or regression"
    )
