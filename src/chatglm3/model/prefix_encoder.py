"""P-Tuning v2 (Liu et al., 2021): learned keys and values in front of every layer's cache.

The prefix is not rotated and takes no positions: the first real token stands at position 0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chatglm3.model.config import ModelConfig


class PrefixEncoder(nn.Module):
    """A table `[P, layers * 2 * groups * d]`, optionally made by a small network; official parameter names."""

    def __init__(self, config: ModelConfig, length: int) -> None:
        super().__init__()
        self._shape = (length, config.num_layers, 2, config.multi_query_group_num, config.kv_channels)
        size = config.num_layers * 2 * config.multi_query_group_num * config.kv_channels
        self.embedding = nn.Embedding(length, size)
        self.trans = None
        if config.prefix_projection:
            self.trans = nn.Sequential(
                nn.Linear(size, config.hidden_size), nn.Tanh(), nn.Linear(config.hidden_size, size)
            )
        self.dropout = nn.Dropout(0.1)

    def forward(self) -> Tensor:
        """Keys and values `[layers, 2, P, groups, d]`."""
        table: Tensor = self.embedding(torch.arange(self._shape[0], device=self.embedding.weight.device))
        if self.trans is not None:
            table = self.trans(table)
        dropped: Tensor = self.dropout(table)
        return dropped.view(self._shape).permute(1, 2, 0, 3, 4)
