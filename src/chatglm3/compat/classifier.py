"""The official sequence-classification class's call."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chatglm3.compat.forward import Output, key_mask
from chatglm3.compat.network import OfficialModel
from chatglm3.model.classifier import SequenceClassifier
from chatglm3.model.loss import classification_loss


@dataclass(frozen=True, eq=False)
class ClassifierOutput(Output):
    """`loss` (with labels) and `logits` [b, labels]."""

    loss: Tensor | None
    logits: Tensor


class ChatGLMForSequenceClassification(OfficialModel):
    """A ChatGLM3 network with a classification head. Made by `AutoModelForSequenceClassification.from_pretrained`."""

    network: SequenceClassifier

    def __call__(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> ClassifierOutput:
        """Scores of each row of `input_ids` [b, s], padded on the left.

        The loss is that of config.json's `problem_type`, or of what the labels are: whole numbers are classes.
        """
        logits = self.network.classify(input_ids, position_ids, key_mask(attention_mask))
        if labels is None:
            return ClassifierOutput(None, logits)
        kind = self.network.config.extra.get("problem_type") or _problem_type(logits, labels)
        return ClassifierOutput(classification_loss(logits, labels, kind), logits)


def _problem_type(logits: Tensor, labels: Tensor) -> str:
    if logits.shape[-1] == 1:
        return "regression"
    whole = labels.dtype in (torch.long, torch.int)
    return "single_label_classification" if whole else "multi_label_classification"
