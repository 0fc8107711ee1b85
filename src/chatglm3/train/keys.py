"""The keys of a config: `lora.rank=16` put in its place, and what an unknown one was probably meant to be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import yaml  # type: ignore[import-untyped]

from chatglm3.errors import TrainingError


def parse_pair(word: str) -> tuple[str, Any]:
    """`lora.rank=16` as its key and its value, which is read as YAML reads it."""
    key, equals, text = word.partition("=")
    if not key or not equals:
        raise TrainingError(f"{word!r} is not key=value, as in lora.rank=16")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return key, text
    is_text = isinstance(value, Mapping) and not text.startswith("{")  # a file may be called "a: b"
    return key, text if is_text else value


def with_pairs(raw: Mapping[str, Any], pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A copy of `raw` with the values of dotted keys put into it."""
    copy = {key: with_pairs(value, ()) if isinstance(value, Mapping) else value for key, value in raw.items()}
    for key, value in pairs:
        *blocks, last = key.split(".")
        place = copy
        for block in blocks:
            if not isinstance(place.get(block), dict):
                place[block] = {}
            place = place[block]
        place[last] = value
    return copy


def require_known(found: Iterable[object], known: Sequence[str], source: object, prefix: str = "") -> None:
    """Raise `TrainingError` for the first key that is not known; `prefix` is the block it stands in, with its dot."""
    for key in found:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known: {', '.join(known)}"
            raise TrainingError(f"{source}: unknown key {prefix + str(key)!r}; {hint}")
