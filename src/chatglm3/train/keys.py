"""The keys of a config: read, `lora.rank=16` put in its place, and what an unknown one was probably meant to be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, ClassVar

import yaml  # type: ignore[import-untyped]

from chatglm3.errors import TrainingError

_DATE = "tag:yaml.org,2002:timestamp"


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML in which a date is text, as for a file that is called so, and a key that is there twice is an error."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in found if tag != _DATE]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if str(key.value) in seen:
                line = key.start_mark.line + 1
                raise yaml.YAMLError(f"{key.value} is given twice, again in line {line}; leave one of them")
            seen.add(str(key.value))
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def parse_yaml(text: str) -> Any:
    """What YAML says. Raises yaml.YAMLError."""
    return yaml.load(text, _Loader)


def parse_pair(word: str) -> tuple[str, Any]:
    """`lora.rank=16` as its key and its value, which is read as YAML reads it."""
    key, equals, text = word.partition("=")
    if not key or not equals:
        raise TrainingError(f"{word!r} is not key=value, as in lora.rank=16")
    try:
        value = parse_yaml(text)
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
