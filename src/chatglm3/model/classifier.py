"""The official sequence-classification head: a linear layer on the hidden state of the last position."""

from __future__ import annotations

from torch import Tensor, nn

from chatglm3.errors import CheckpointError
from chatglm3.model.config import ModelConfig
from chatglm3.model.transformer import ChatGLMModel


class SequenceClassifier(ChatGLMModel):
    """A ChatGLM3 network with `classifier_head` beside its output layer; official names."""

    def __init__(self, config: ModelConfig) -> None:
        """config.json names the number of classes: `num_labels`, or the length of `id2label`."""
        super().__init__(config)
        labels = config.extra.get("num_labels", len(config.extra.get("id2label", ())))
        if not isinstance(labels, int) or labels < 1:
            raise CheckpointError("config.json: neither num_labels nor id2label says how many classes there are")
        self.classifier_head = nn.Linear(config.hidden_size, labels)

    def classify(self, input_ids: Tensor, positions: Tensor | None = None, key_mask: Tensor | None = None) -> Tensor:
        """Scores [b, labels] for `input_ids` [b, s], padded on the left; see `forward` for the rest."""
        scores: Tensor = self.classifier_head(self.encode(input_ids, positions, key_mask)[:, -1])
        return scores
