"""What a row is, what a value is as text, and which kinds of values a column holds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal, TypeAlias

Row: TypeAlias = dict[str, object]
Kind: TypeAlias = Literal["null", "boolean", "integer", "number", "text"]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used: what there is of it, and one line that says where it is and what is wrong."""

    values: Row
    error: str


def as_text(value: object) -> str:
    """A value in a prompt or in a CSV cell: text as it is, null as nothing, numbers, lists and objects as JSON."""
    if value is None:
        return ""
    if isinstance(value, (bool, int, float, list, dict)):
        return as_json(value)
    return str(value)


def as_json(value: object) -> str:
    """One line of JSON; dates, times and decimals, which JSON has not, are text."""
    return json.dumps(value, ensure_ascii=False, default=str)


def without_nan(value: object) -> object:
    """The value with null for every NaN in it, which JSON has not either."""
    if isinstance(value, float):
        return None if value != value else value
    if isinstance(value, (list, tuple)):  # a map of Parquet is a list of pairs
        return type(value)(without_nan(item) for item in value)
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    return value


class Columns:
    """The columns of the rows that were seen, in order of appearance, and the kind of what each holds."""

    def __init__(self) -> None:
        self.kinds: dict[str, Kind] = {}

    def see(self, row: Row) -> None:
        """Take note of a row."""
        for name, value in row.items():
            seen, kind = self.kinds.get(name, "null"), _kind(value)
            self.kinds[name] = kind if seen in ("null", kind) else seen if kind == "null" else _common(seen, kind)


def _kind(value: object) -> Kind:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer" if -(2**63) <= value < 2**63 else "text"
    return "number" if isinstance(value, float) else "text"


def _common(a: Kind, b: Kind) -> Kind:
    return "number" if {a, b} == {"integer", "number"} else "text"
