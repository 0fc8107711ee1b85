"""The official generation arguments as `SamplingParams`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from chatglm3.engine.params import SamplingParams
from chatglm3.errors import ContextLengthError, SamplingError

_INVALID_SCORES = "InvalidScoreLogitsProcessor"


def sampling_params(
    options: Mapping[str, Any], *, do_sample: bool, max_length: int | None, tokens: int, room: int
) -> SamplingParams:
    """`options` are fields of `SamplingParams`, except `stop` and `logprobs`, which the official calls do not have.

    `max_length` bounds the prompt's `tokens` and the answer together (None: no bound) unless `max_new_tokens` bounds
    the answer; `room` is what the context leaves. Without `do_sample` decoding is greedy, or beam search.
    """
    for name in ("stop", "logprobs"):
        if name in options:
            raise SamplingError(f"{name} has no place in the official calls; use chatglm3.load(...).chat")
    chosen = dict(options)
    if not do_sample:
        chosen["temperature"] = 0
    elif chosen.get("num_beams", 1) > 1:
        warnings.warn("beam search does not sample: give do_sample=False to say so", stacklevel=4)
    if chosen.get("max_new_tokens") is None and max_length is not None:
        chosen["max_new_tokens"] = _new_tokens(max_length, tokens, room)
    return SamplingParams.of(chosen)


def refuse_processors(logits_processor: Sequence[object] | None) -> None:
    """Refuse logits processors, except the one that the official scripts bring along.

    That one hides NaN and infinite logits behind a byte 2; here they raise `NumericsError`, so it has nothing to do.
    """
    for processor in logits_processor or ():
        if type(processor).__name__ != _INVALID_SCORES:
            raise SamplingError(
                f"logits_processor holds a {type(processor).__name__}, which cannot be run; use repetition_penalty, "
                "presence_penalty, frequency_penalty, min_new_tokens or banned"
            )


def _new_tokens(max_length: int, tokens: int, room: int) -> int:
    if not isinstance(max_length, int) or isinstance(max_length, bool):
        raise SamplingError(f"max_length must be a whole number, not {max_length!r}")
    if min(max_length - tokens, room) < 1:
        context = f"max_length {max_length}" if max_length - tokens <= room else f"the context of {tokens + room}"
        raise ContextLengthError(
            f"the prompt has {tokens} tokens and {context} leaves no room for an answer; shorten the history"
        )
    return min(max_length - tokens, room)
