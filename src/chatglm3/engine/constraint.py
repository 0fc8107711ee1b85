"""What an answer may be, token by token: how text, of which the engine knows nothing, rules what it chooses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Constraint(Protocol):
    """The state of one answer: a request needs one of its own, and every token of its answer is told to it."""

    def allowed(self) -> NDArray[np.bool_]:
        """[vocab_size]: true for each id that may come next; at least one may. Stop ids are among them or not."""

    def forced(self) -> Sequence[int]:
        """Ids that come next whatever the model says, so that no logits are needed for them; empty if it has a say."""

    def accept(self, token_id: int) -> None:
        """Take the token that was chosen, which is an allowed one (a stop id too)."""

    @property
    def finished(self) -> bool:
        """The answer is whole and cannot go on: nothing but a stop id is allowed."""
