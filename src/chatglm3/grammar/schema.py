"""A JSON schema, read and checked: whatever could not be held to is refused by its name and place, never passed over.

What is left means the same in every draft of JSON Schema that has it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from chatglm3.errors import SamplingError

_OF_OBJECTS = {
    "properties",
    "patternProperties",
    "additionalProperties",
    "required",
    "minProperties",
    "maxProperties",
}
_OF_ARRAYS = {"items", "prefixItems", "minItems", "maxItems"}
_OF_STRINGS = {"minLength", "maxLength", "pattern", "format"}
_OF_NUMBERS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_COMPOSING = {"$ref", "anyOf", "oneOf", "allOf"}
ENFORCED = {"type", "enum", "const", *_COMPOSING, *_OF_OBJECTS, *_OF_ARRAYS, *_OF_STRINGS, *_OF_NUMBERS}
"""Keywords that an answer is held to."""
FORMATS = {"date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"}
"""Values of `format` that an answer is held to."""
_DEFINING = {"$defs", "definitions"}
_DESCRIBING = {"title", "description", "default", "examples", "$comment", "deprecated", "readOnly", "writeOnly"}
_AT_THE_ROOT = ("$schema", "$id", "id")
_MAPS = {"properties", "patternProperties", *_DEFINING}
_LISTS = {"anyOf", "oneOf", "allOf", "prefixItems"}
_SINGLE = {"items", "additionalProperties"}
_CONTROL = re.compile(r"(?<!\\)(?:\\\\)*\\u00|\x7f")  # in the spelling of json.dumps
_LARGEST_INTEGER = 2**53  # above it a double, which is what numbers become on the way, is not exact


def read_schema(schema: object) -> dict[str, Any]:
    """The checked schema of a dict, a JSON text or a pydantic model; `SamplingError` names what is wrong with it.

    Objects that list their properties and say nothing of others are closed: no others are written.
    """
    root = _parse(schema)
    for name in _AT_THE_ROOT:
        root.pop(name, None)
    parts = dict(_parts(root, "#"))
    for place, part in parts.items():
        if isinstance(part, dict):
            _check(part, place, parts)
        elif not isinstance(part, bool):
            raise _error(f"{place} must be an object, true or false, not {part!r}")
    _close([part for part in parts.values() if isinstance(part, dict)])
    return root


def _parse(schema: object) -> dict[str, Any]:
    pydantic = getattr(schema, "model_json_schema", None)
    try:
        value = pydantic() if callable(pydantic) else schema
        text = value if isinstance(value, str) else json.dumps(value, allow_nan=False)
        root = json.loads(text, parse_int=_integer, parse_constant=_no_number)
        json.dumps(root, ensure_ascii=False).encode()  # fails for half a surrogate pair
    except SamplingError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise _error(f"it is not JSON ({error})") from error
    if not isinstance(root, dict):
        raise _error(f"it must be an object, not {root!r}")
    return root


def _parts(schema: object, place: str) -> Iterator[tuple[str, object]]:
    """The schema and all schemas in it, each with the place that a `$ref` gives it."""
    yield place, schema
    if isinstance(schema, dict):
        for name, value in schema.items():
            below = f"{place}/{name}"
            if name in _SINGLE:
                yield from _parts(value, below)
            elif name in _MAPS and isinstance(value, dict):
                for key, part in value.items():
                    yield from _parts(part, f"{below}/{key.replace('~', '~0').replace('/', '~1')}")
            elif name in _LISTS and isinstance(value, list):
                for i, part in enumerate(value):
                    yield from _parts(part, f"{below}/{i}")
            elif name in _MAPS | _LISTS:
                raise _error(f"{below} must be {'an object' if name in _MAPS else 'a list'}, not {value!r}")


def _check(schema: dict[str, Any], place: str, places: object) -> None:
    unknown = sorted(schema.keys() - ENFORCED - _DEFINING - _DESCRIBING)
    if unknown:
        raise _error(f"{', '.join(map(repr, unknown))} at {place} cannot be enforced; leave it out")
    target = schema.get("$ref", "#")
    if not isinstance(target, str) or not target.startswith("#"):
        raise _error(f"$ref at {place} leads out of the schema, to {target!r}; copy what is there into $defs")
    if unquote(target) not in places:  # type: ignore[operator]
        raise _error(f"$ref at {place} leads to {target!r}, where no schema is")
    for name in ("exclusiveMinimum", "exclusiveMaximum"):
        if isinstance(schema.get(name), bool):
            raise _error(f"{name} at {place} must be a number, not {schema[name]!r}")
    if schema.get("format", "uuid") not in FORMATS:
        raise _error(f"format {schema['format']!r} at {place} is unknown; use one of {', '.join(sorted(FORMATS))}")
    if _CONTROL.search(json.dumps([schema.get("const"), schema.get("enum")], ensure_ascii=False)):
        raise _error(f"a value at {place} has a control character, which is never written; leave it out")
    least = schema.get("minProperties", 0)
    if isinstance(least, int) and least > 1:
        raise _error(f"minProperties at {place} cannot be enforced above 1; list the properties as required")


def _close(parts: list[dict[str, Any]]) -> None:
    """Where no schemas are laid over each other, one that lists properties can be told to have no others."""
    if any(_overlays(part) for part in parts):
        return
    for part in parts:
        if "properties" in part and "patternProperties" not in part:
            part.setdefault("additionalProperties", False)


def _overlays(schema: dict[str, Any]) -> bool:
    composing = schema.keys() & _COMPOSING
    several = len(composing) > 1 or len(schema.get("allOf", ())) > 1
    return several or bool(composing and schema.keys() & _OF_OBJECTS)


def _integer(digits: str) -> int:
    if abs(int(digits)) > _LARGEST_INTEGER:
        raise _error(f"the number {digits} is too large to be exact; use a string, or leave it out")
    return int(digits)


def _no_number(name: str) -> float:
    raise _error(f"it is not JSON ({name} is no number there)")


def _error(what: str) -> SamplingError:
    return SamplingError(f"json_schema: {what}")
