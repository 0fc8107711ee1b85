"""Answers that a model which knows nothing writes under a constraint: random scores, and a growing wish to end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from chatglm3.engine.constraint import Constraint
from chatglm3.reply import parse_ids
from chatglm3.tokenizer import Tokenizer

ENDS = ('"', "}", "]", ",", '"}', '"]', '",')
ODD = ("\\", "\n", "\t", "/", "😀", "你", "\u2028", "\x7f", "e", "-", "0")


class RandomWriter:
    """Chooses by random scores; `seed` decides all of them."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self._tokenizer, self._seed = tokenizer, seed
        self._ends = np.zeros(tokenizer.vocab_size)
        self._ends[[*_ids(tokenizer, ENDS), *tokenizer.stop_ids]] = 1
        self._odd = np.zeros(tokenizer.vocab_size)
        self._odd[_ids(tokenizer, ODD)] = 1

    def write(self, constraint: Constraint, *, forced: bool, limit: int = 300) -> list[int] | None:
        """The ids of an answer without its stop id; None if it is not at its end after `limit` tokens."""
        ids: list[int] = []
        while len(ids) < limit:
            run = list(constraint.forced()) if forced else []
            for token_id in run or [self._choose(constraint, len(ids))]:
                constraint.accept(token_id)
                if token_id in self._tokenizer.stop_ids:
                    return ids
                ids.append(token_id)
            if constraint.finished:
                mask = constraint.allowed()
                assert np.flatnonzero(mask).tolist() == sorted(self._tokenizer.stop_ids)
                return ids
        return None

    def _choose(self, constraint: Constraint, length: int) -> int:
        mask = constraint.allowed()
        assert mask.shape == (self._tokenizer.vocab_size,)
        assert mask.any()
        scores = np.random.default_rng((self._seed, length)).normal(size=len(mask))
        scores += self._ends * min(length / 15, 6) + 1.5 * self._odd
        return int(np.where(mask, scores, -np.inf).argmax())


def read_back(tokenizer: Tokenizer, ids: Sequence[int], *, chat: bool) -> str:
    """The text of an answer, as `Reply` and `Completion` give it."""
    return parse_ids(tokenizer, ids).text if chat else tokenizer.decode([tokenizer.newline_id, *ids])[1:]


def _ids(tokenizer: Tokenizer, texts: Sequence[str]) -> list[int]:
    return sorted({token_id for text in texts for token_id in tokenizer.encode_continuation(text)})
