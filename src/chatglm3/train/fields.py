"""What the values of a config may be, and plain words for one that is not so."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError


def _number(value: object) -> object:
    if isinstance(value, bool):  # which Python counts among the numbers
        raise ValueError("input should be a number")
    return value


def _list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _home(path: Path) -> Path:
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError("input begins with the home of nobody here") from None


_Number = BeforeValidator(_number)
Positive = Annotated[float, Field(gt=0, le=1e30, allow_inf_nan=False), _Number]  # fp32 has no larger ones
Rate = Annotated[float, Field(gt=0, le=1e3, allow_inf_nan=False), _Number]
Decay = Annotated[float, Field(ge=0, le=1e3, allow_inf_nan=False), _Number]
Share = Annotated[float, Field(ge=0, lt=1), _Number]
Length = Annotated[int, Field(ge=8), _Number]
Seed = Annotated[int, Field(ge=0, lt=2**32), _Number]
Whole = Annotated[int, Field(ge=0), _Number]
Count = Annotated[int, Field(ge=1, le=10**12), _Number]
File = Annotated[Path, AfterValidator(_home)]
ModelName = Annotated[str, AfterValidator(lambda name: str(_home(Path(name))) if name.startswith("~") else name)]
Targets = Annotated[
    tuple[Literal["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"], ...], BeforeValidator(_list)
]

# pydantic's words for what is wrong, where they are about Python.
_PLAIN = {
    "missing": "is missing",
    "model_type": "input should be a block of keys",
    "dict_type": "input should be a block of keys",
    "tuple_type": "input should be a list",
    "too_long": "input has too many values",
    "path_type": "input should be a path",
    "string_type": "input should be text",
    **dict.fromkeys(("bool_type", "bool_parsing"), "input should be true or false"),
    **dict.fromkeys(
        ("int_type", "int_parsing", "int_from_float", "int_parsing_size"), "input should be a whole number"
    ),
    **dict.fromkeys(("float_type", "float_parsing"), "input should be a number"),
}


def describe(error: ValidationError) -> str:
    """The first thing that is wrong, in one line."""
    first = error.errors(include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    said = _PLAIN.get(first["type"], first["msg"].removeprefix("Value error, "))
    if not place:
        return said
    if first["type"] == "missing":
        return f"{place} {said}"
    return f"{place}: {said[:1].lower()}{said[1:]}, not {_word(first['input'])}"


def _word(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
