"""How to choose the next token: the parameters of one request."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import Any, TypedDict

from chatglm3.errors import SamplingError


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters of one request. The defaults are what the official `chat` does, `top_k` included.

    Processing order: repetition penalty, presence and frequency penalty, bans, temperature, top-k, top-p, draw.
    """

    max_new_tokens: int | None = None
    """Most tokens to generate, the stop token included; None: up to the end of the context."""
    temperature: float = 0.8
    """0 is greedy: the most probable token, always."""
    top_k: int = 50
    """Keep the `top_k` most probable tokens; 0 keeps all. (The official code applies 50 without saying so.)"""
    top_p: float = 0.8
    """Keep the fewest tokens whose probabilities reach `top_p` together; 1 keeps all."""
    repetition_penalty: float = 1.0
    """Divide positive and multiply negative scores of every token of prompt and answer (Keskar et al., 2019)."""
    presence_penalty: float = 0.0
    """Subtract this from the score of every token that the answer holds."""
    frequency_penalty: float = 0.0
    """Subtract this for each time that the answer holds the token."""
    min_new_tokens: int = 0
    """No stop token before this many tokens."""
    num_beams: int = 1
    """More than 1: beam search, which is deterministic and does not use temperature, top_k, top_p and seed."""
    length_penalty: float = 1.0
    """Beam search: a finished beam's score is its log-probability over (tokens ** length_penalty)."""
    early_stopping: bool = False
    """Beam search: stop as soon as `num_beams` beams are finished."""
    seed: int | None = None
    """Seed of this request's own generator; None draws a new one each time."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    banned: tuple[int, ...] = ()
    """Token ids that are never produced."""
    max_time: float | None = None
    """Seconds, waiting included, after which the answer ends where it is, with finish_reason "deadline"."""
    logprobs: int | None = None
    """Report the log-probability of each token and of this many most probable ones."""

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name, what in (("stop", "strings"), ("banned", "token ids")):
            value = getattr(self, name)
            if not isinstance(value, Iterable):
                raise SamplingError(f"{name} must be a list of {what}, not {value!r}")
            object.__setattr__(self, name, tuple(value))
        for name, (kind, low, high) in _RANGES.items():
            _check(name, getattr(self, name), kind, low, high)
        if not all(isinstance(s, str) and s for s in self.stop):
            raise SamplingError(f"stop must be non-empty strings, not {self.stop!r}")
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in self.banned):
            raise SamplingError(f"banned must be token ids, not {self.banned!r}")
        if not isinstance(self.early_stopping, bool):
            raise SamplingError(f"early_stopping must be True or False, not {self.early_stopping!r}")
        if self.num_beams > 1 and (self.logprobs is not None or self.max_time is not None):
            raise SamplingError("beam search has neither logprobs nor max_time; use num_beams=1")

    def options(self) -> SamplingOptions:
        """The fields as keyword arguments."""
        return {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[return-value]

    @classmethod
    def of(cls, options: SamplingOptions | Mapping[str, Any]) -> SamplingParams:
        """From keyword arguments; an unknown name raises `SamplingError` with the nearest known one."""
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
                raise SamplingError(f"unknown sampling parameter {name!r}; {hint}")
        return cls(**options)


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingParams` as keyword arguments (`stop` may also be one string)."""

    max_new_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    min_new_tokens: int
    num_beams: int
    length_penalty: float
    early_stopping: bool
    seed: int | None
    stop: str | Sequence[str]
    banned: Sequence[int]
    max_time: float | None
    logprobs: int | None


_INFINITY = math.inf
_RANGES: dict[str, tuple[type, float, float]] = {
    "max_new_tokens": (int, 1, _INFINITY),
    "temperature": (float, 0, 100),
    "top_k": (int, 0, _INFINITY),
    "top_p": (float, 0, 1),
    "repetition_penalty": (float, 1e-3, 1e3),
    "presence_penalty": (float, -100, 100),
    "frequency_penalty": (float, -100, 100),
    "min_new_tokens": (int, 0, _INFINITY),
    "num_beams": (int, 1, 64),
    "length_penalty": (float, -100, 100),
    "max_time": (float, 0, _INFINITY),
    "seed": (int, -(2**63), 2**64 - 1),
    "logprobs": (int, 0, 1000),
}
_OPTIONAL = ("max_new_tokens", "max_time", "seed", "logprobs")


def _check(name: str, value: Any, kind: type, low: float, high: float) -> None:
    if value is None and name in _OPTIONAL:
        return
    right_type = isinstance(value, (int, float) if kind is float else int) and not isinstance(value, bool)
    if not right_type or not low <= value <= high:  # false for NaN too
        wanted = "a whole number" if kind is int else "a number"
        bound = f"from {low:g} to {high:g}" if high < _INFINITY else f"of at least {low:g}"
        raise SamplingError(f"{name} must be {wanted} {bound}, not {value!r}")
