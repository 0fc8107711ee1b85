"""`json_schema=`: an answer that is JSON under a schema, held to it by llguidance (the extra `grammar`).

The JSON is written as `json.dumps` writes it, one space behind each comma and colon and no other, so a model can never
lose itself in whitespace, and what the schema fixes (keys, punctuation) costs no decoding.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from chatglm3.errors import SamplingError
from chatglm3.grammar.schema import read_schema
from chatglm3.tokenizer import Tokenizer

_SPACE = "\u2581"
# No \u escapes: they could spell half of a surrogate pair, or the name of a property a second time.
_ESCAPES = 'nrbtf\\"'


class Vocabulary:
    """What each id writes, as the grammar engine needs it. Made once for a tokenizer, when it is first asked for."""

    bos_token_id = None
    special_token_ids: Sequence[int] = ()

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.vocab_size, self.stop_ids = tokenizer.vocab_size, list(tokenizer.stop_ids)
        self.eos_token_id = tokenizer.eos_id
        self.header = tokenizer.encode("\n")

    @cached_property
    def tokens(self) -> list[bytes]:
        """The bytes of every id; empty for those that are never to be chosen.

        A byte piece is left out where a piece of one character writes the same: no text is encoded to it.
        """
        t = self._tokenizer
        texts = [t.piece(i).replace(_SPACE, " ").encode() if i < t.n_pieces else b"" for i in range(t.vocab_size)]
        bytes_of = {i: value for i in range(t.n_pieces) if (value := t.byte_value(i)) is not None}
        written = {text for i, text in enumerate(texts) if i not in bytes_of}
        return [_byte(bytes_of[i], written) if i in bytes_of else text for i, text in enumerate(texts)]

    def __call__(self, text: bytes) -> list[int]:
        """The ids that the tokenizer writes for UTF-8 text in the middle of an answer."""
        return self._tokenizer.encode_continuation(text.decode())

    @cached_property
    def engine(self) -> Any:
        """llguidance's tree of all tokens."""
        try:
            from llguidance import LLTokenizer, TokenizerWrapper
        except ImportError:
            raise SamplingError('json_schema needs llguidance; install it: pip install "chatglm3[grammar]"') from None
        return LLTokenizer(TokenizerWrapper(self))


class JsonGrammar:
    """A compiled schema; any number of answers may share it."""

    most_tokens: int | None = None

    def __init__(self, vocabulary: Vocabulary, schema: object, *, chat: bool) -> None:
        """`chat`: answers begin with an empty header line and a space. `SamplingError` names what is unsupported."""
        self._vocabulary, self._head = vocabulary, vocabulary.header if chat else []
        self._matcher = _compile(vocabulary.engine, read_schema(schema), " " if chat else "")
        self._try()

    def _try(self) -> None:
        """Some schemas that no JSON fits, or none that ends, show it only when the first token is asked for."""
        state = self.start()
        for token_id in state.forced():
            state.accept(token_id)
        if not state.finished:
            state.allowed()

    def start(self) -> JsonState:
        """The constraint of one answer."""
        return JsonState(self._matcher.deep_copy(), self._vocabulary, self._head)


class JsonState:
    """How far one answer is (a `Constraint`). What is forced is also all that is allowed, so that heeding it or not
    makes no difference to the answer.
    """

    def __init__(self, matcher: Any, vocabulary: Vocabulary, head: Sequence[int]) -> None:
        self._matcher, self._vocabulary = matcher, vocabulary
        self._head = list(head)  # of the header line, which the matcher does not know
        self._run: list[int] | None = None  # what is forced now; None before it is asked for

    def allowed(self) -> NDArray[np.bool_]:
        """What is forced, or what the grammar allows, and the stop ids where the JSON is whole."""
        if run := self.forced():
            mask = np.zeros(self._vocabulary.vocab_size, dtype=np.bool_)
            mask[run[0]] = True
            return mask
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        self._check()
        mask = np.unpackbits(bits, count=self._vocabulary.vocab_size, bitorder="little").view(np.bool_)
        mask[self._vocabulary.stop_ids] = self._matcher.is_accepting()
        return mask

    def forced(self) -> list[int]:
        """The header line and the space, and later what the schema leaves no choice about."""
        if self._run is None:
            self._run = [*self._head, *self._matcher.compute_ff_tokens()]
            self._check()
        return list(self._run)

    def accept(self, token_id: int) -> None:
        """Advance by a token; a stop id ends nothing here."""
        self._run = self._run[1:] or None if self._run else None
        if self._head:
            self._head.remove(token_id)
        elif token_id not in self._vocabulary.stop_ids:
            self._matcher.consume_token(token_id)
            self._check()

    @property
    def finished(self) -> bool:
        """The JSON is whole and nothing can follow."""
        return not self._head and bool(self._matcher.is_stopped() and self._matcher.is_accepting())

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = _line(self._matcher.get_error())
            raise SamplingError(f"json_schema: no JSON under the schema can go on from here ({reason})")


def _compile(engine: Any, schema: dict[str, Any], space: str) -> Any:
    from llguidance import LLMatcher

    options = {
        "item_separator": ", ",
        "key_separator": ": ",
        "whitespace_flexible": False,
        "coerce_one_of": False,
        "lenient": False,
        "json_allowed_escapes": _ESCAPES,
    }
    text = json.dumps({**schema, "x-guidance": options}, ensure_ascii=False)
    lark = f"start: {json.dumps(space)} json\njson: %json {text}" if space else f"start: %json {text}"
    matcher = LLMatcher(engine, LLMatcher.grammar_from_lark(lark), log_level=0)
    if matcher.is_error():
        reason = _line(matcher.get_error())
        if "oneOf" in reason:
            reason = "oneOf needs parts that differ in type or in a required constant; use anyOf"
        raise SamplingError(f"json_schema: it cannot be enforced: {reason}")
    return matcher


def _line(message: str) -> str:
    """What the engine says, without where in its own notation that is."""
    said = re.split(r"\n   1 \||\n<state>", message)[0].rpartition("failed to compile JSON schema: ")[2]
    return " ".join(said.split())[:300]


def _byte(value: int, written: set[bytes]) -> bytes:
    return b"" if bytes([value]) in written else bytes([value])
