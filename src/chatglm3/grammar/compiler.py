"""From what a caller asks of an answer to the grammar that its requests share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from typing import Protocol

from chatglm3.engine.constraint import Constraint
from chatglm3.engine.params import SamplingParams
from chatglm3.errors import SamplingError
from chatglm3.grammar.choices import ChoiceGrammar
from chatglm3.grammar.json_schema import JsonGrammar, Vocabulary
from chatglm3.tokenizer import Tokenizer


class Grammar(Protocol):
    """What answers must be, compiled once and shared; each answer takes a state of its own from `start`."""

    most_tokens: int | None
    """The most tokens that an answer takes; None if there is no bound."""

    def start(self) -> Constraint:
        """The state of one answer."""


class GrammarCompiler:
    """Compiles for one tokenizer; what all grammars share is made once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self._tokenizer)

    def compile(self, *, choices: Iterable[str] | None, json_schema: object, chat: bool) -> Grammar | None:
        """The grammar of what is not None; None if both are. `chat`: answers begin with an empty header line.

        Raises SamplingError.
        """
        if choices is not None and json_schema is not None:
            raise SamplingError("choices and json_schema exclude each other; an enum in the schema is a choice, too")
        if choices is not None:
            return ChoiceGrammar(self._tokenizer, choices, chat=chat)
        if json_schema is not None:
            return JsonGrammar(self._vocabulary, json_schema, chat=chat)
        return None


def fitted(params: SamplingParams, grammar: Grammar) -> SamplingParams:
    """The parameters of a request whose answer must be whole; `SamplingError` for those that would break it."""
    if params.num_beams > 1:
        raise SamplingError("choices and json_schema do not work with beam search; use num_beams=1")
    for name in ("stop", "banned", "min_new_tokens"):
        if getattr(params, name):
            raise SamplingError(f"{name} could cut or block an answer that choices or json_schema rule; leave it out")
    least, most = grammar.most_tokens, params.max_new_tokens
    if least is not None and most is not None and most < least:
        raise SamplingError(f"the longest choice takes {least} tokens; max_new_tokens is {most}")
    return replace(params, max_new_tokens=most or least)
