"""`choices=`: an answer that is one of a few texts.

The choices are a tree of the ids that the tokenizer itself writes for them, as `classify` scores them. So the model is
never led to a spelling in pieces that it has not seen in training, and wherever all remaining choices agree nothing has
to be computed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from chatglm3.errors import SamplingError
from chatglm3.reply import parse_ids
from chatglm3.tokenizer import Tokenizer


@dataclass(eq=False, slots=True)
class _Node:
    """A place in the tree: where each id leads, and whether a choice ends here (another may go on)."""

    children: dict[int, _Node] = field(default_factory=dict)
    ends: bool = False


class ChoiceGrammar:
    """The tree of all choices; any number of answers may share it."""

    def __init__(self, tokenizer: Tokenizer, choices: Iterable[str], *, chat: bool) -> None:
        """`chat`: the answers begin with an empty header line. `SamplingError` if the choices are not usable."""
        self._stop_ids, self._vocab_size = list(tokenizer.stop_ids), tokenizer.vocab_size
        self._root = _Node()
        paths = [_path(tokenizer, choice, chat) for choice in _checked(choices)]
        self.most_tokens: int | None = max(map(len, paths))
        for path in paths:
            node = self._root
            for token_id in path:
                node = node.children.setdefault(token_id, _Node())
            node.ends = True

    def start(self) -> ChoiceState:
        """The constraint of one answer."""
        return ChoiceState(self._root, self._stop_ids, self._vocab_size)


class ChoiceState:
    """How far down the tree one answer is (a `Constraint`)."""

    def __init__(self, node: _Node, stop_ids: Sequence[int], vocab_size: int) -> None:
        self._node, self._stop_ids, self._vocab_size = node, stop_ids, vocab_size

    def allowed(self) -> NDArray[np.bool_]:
        """The ids that lead on, and the stop ids where a choice ends."""
        mask = np.zeros(self._vocab_size, dtype=np.bool_)
        mask[list(self._node.children)] = True
        mask[self._stop_ids] = self._node.ends
        return mask

    def forced(self) -> list[int]:
        """The ids down to the next branch, or to the end of a choice."""
        run: list[int] = []
        node = self._node
        while len(node.children) == 1 and not node.ends:
            ((token_id, node),) = node.children.items()
            run.append(token_id)
        return run

    def accept(self, token_id: int) -> None:
        """Go down the tree; a stop id stays."""
        if token_id not in self._stop_ids:
            self._node = self._node.children[token_id]

    @property
    def finished(self) -> bool:
        """At a leaf."""
        return self._node.ends and not self._node.children


def _checked(choices: object) -> list[str]:
    if isinstance(choices, str) or not isinstance(choices, Iterable):
        raise SamplingError(f"choices must be a list of strings, not {type(choices).__name__}")
    given = list(choices)
    if not given or not all(isinstance(choice, str) and choice for choice in given):
        raise SamplingError(f"choices must be non-empty strings, not {given!r}")
    twice = [choice for choice, count in Counter(given).items() if count > 1]
    if twice:
        raise SamplingError(f"choices must differ; {', '.join(twice)} is given twice")
    return given


def _path(tokenizer: Tokenizer, choice: str, chat: bool) -> list[int]:
    """The ids of an answer that is read back as exactly this text."""
    if chat:
        ids = [*tokenizer.encode("\n"), *tokenizer.encode(choice)]
        text = parse_ids(tokenizer, ids).text
    else:
        ids = tokenizer.encode_continuation(choice)
        text = tokenizer.decode([tokenizer.newline_id, *ids])[1:]
    if text != choice:
        raise SamplingError(f"the choice {choice!r} would be read back as {text!r}; give it in that form")
    return ids
