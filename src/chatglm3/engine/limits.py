"""What a request may hold: ids that are known, and a prompt with its answer within the context."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chatglm3.engine.labels import LabelTree
from chatglm3.engine.sampling import require_known
from chatglm3.errors import ContextLengthError, SamplingError


@dataclass(frozen=True)
class Limits:
    """`vocab_size` ids mean something and may be chosen or scored; prompts may have any of `embeddings`."""

    max_context: int
    vocab_size: int
    embeddings: int

    def room(self, prompt: Sequence[int], wanted: int | None, banned: Sequence[int] = ()) -> int:
        """How many tokens may be generated; `ContextLengthError` if the request does not fit."""
        require_known(banned, self.vocab_size)
        asked = f"max_new_tokens is {wanted}" if wanted else "an answer takes at least 1"
        self._require_fit(prompt, wanted or 1, asked, "shorten the history or ask for fewer tokens")
        return wanted or self.max_context - len(prompt)

    def check_labels(self, prompt: Sequence[int], tree: LabelTree) -> None:
        """Raise `ContextLengthError` if the labels do not fit behind the prompt."""
        require_known({i for steps in tree.steps for step in steps for i in step.ids}, self.vocab_size)
        longest = max((len(steps) for steps in tree.steps), default=0) or 1
        self._require_fit(prompt, longest, f"what is scored behind it takes {longest}", "shorten the text")

    def _require_fit(self, prompt: Sequence[int], tokens: int, asked: str, advice: str) -> None:
        require_known(prompt, self.embeddings)
        if not prompt:
            raise SamplingError("an empty prompt cannot be continued; give at least one token")
        if len(prompt) + tokens > self.max_context:
            raise ContextLengthError(
                f"the prompt has {len(prompt)} tokens and {asked}, more than the context of {self.max_context}; "
                f"{advice}"
            )
