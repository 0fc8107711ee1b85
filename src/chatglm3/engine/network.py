"""The engine's side of the network: tokens of several caches in one run, and scores that are numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from chatglm3.engine.numerics import first_bad_module
from chatglm3.errors import ChatGLMError, NumericsError
from chatglm3.kernels.native import convert
from chatglm3.model.cache import KVCache
from chatglm3.model.transformer import ChatGLMModel


class Network:
    """Runs a model for the engine. Tokens of several sequences are laid end to end; each has a cache of its own."""

    def __init__(self, model: ChatGLMModel, vocab_size: int) -> None:
        """`vocab_size` ids mean something; scores beyond them are cut off."""
        self._model: ChatGLMModel | None = model
        self.vocab_size = vocab_size
        self._devices = [block.device for block in model.blocks]

    @property
    def model(self) -> ChatGLMModel:
        """The network; `ChatGLMError` once it is closed."""
        if self._model is None:
            raise ChatGLMError("this model is closed; load it again")
        return self._model

    def close(self) -> None:
        """Let go of the model."""
        self._model = None

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache for `capacity` tokens a row, behind the model's P-Tuning prefix if it has one."""
        return KVCache(self.model.config, batch, capacity, self.model.dtype, self._devices, self.model.prefix())

    def cache_bytes(self, batch: int, capacity: int) -> int:
        """Bytes of such a cache."""
        config, encoder = self.model.config, getattr(self.model.transformer, "prefix_encoder", None)
        prefix = 0 if encoder is None else encoder.embedding.num_embeddings
        token = 2 * config.num_layers * config.multi_query_group_num * config.kv_channels * self.model.dtype.itemsize
        return batch * (capacity + prefix) * token

    def run(self, parts: Sequence[tuple[KVCache, Sequence[int]]]) -> Tensor:
        """Hidden states `[tokens, h]` of all parts, end to end; the caches then hold the tokens."""
        ids = [token for _, tokens in parts for token in tokens]
        positions = [i for cache, tokens in parts for i in range(cache.tokens, cache.tokens + len(tokens))]
        both = torch.tensor([[ids], [positions]], device=self.model.device)
        return self.model.hidden(both[0], both[1], [(cache, len(tokens)) for cache, tokens in parts])[0]

    def scores(self, hidden: Tensor) -> Tensor:
        """fp32 scores `[n, vocab_size]` on the CPU."""
        return convert(self.model.logits(hidden)[..., : self.vocab_size], torch.float32).cpu()

    def checked_scores(self, hidden: Tensor, context: Callable[[int], Sequence[int]]) -> Tensor:
        """`scores`; NumericsError if one is not finite. `context(row)`, the tokens up to it, serves the diagnosis."""
        scores = self.scores(hidden)
        bad = bad_rows(scores)
        if bad:
            raise self.diagnose(context(bad[0]))
        return scores

    def diagnose(self, token_ids: Sequence[int]) -> NumericsError:
        """Where a score behind these tokens stopped being a number."""
        return NumericsError(first_bad_module(self.model, token_ids))


def bad_rows(scores: Tensor) -> list[int]:
    """Rows of `scores` [n, vocabulary] that hold a NaN or an infinity."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = scores.numpy().sum()
    if np.isfinite(total):
        return []
    finite = torch.isfinite(scores).all(-1)  # a sum of finite scores may overflow, so look again
    rows: list[int] = (~finite).nonzero()[:, 0].tolist()
    return rows
