"""JSONL: one JSON object a line. Its NaN and Infinity, which JSON has not, become null."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from chatglm3.errors import DataError
from chatglm3.tables.encoding import find_encoding, open_text
from chatglm3.tables.files import reading
from chatglm3.tables.rows import BadRow, Row, as_json


@dataclass(frozen=True)
class JsonlTable:
    """A JSONL file whose encoding is known."""

    path: Path
    encoding: str

    @classmethod
    def open(cls, path: Path, encoding: str | None) -> JsonlTable:
        """Find out its encoding."""
        return cls(path, find_encoding(path, encoding))

    def rows(self) -> Iterator[Row | BadRow]:
        """The rows in order; empty lines are none."""
        with reading(self.path), open_text(self.path, self.encoding, newline="\n") as text:
            for number, line in enumerate(text, 1):
                if line.strip():
                    yield _row(line, number)


def parse_json(text: str, what: str) -> Any:
    """The value of JSON text. Raises `DataError`, in which the text is called `what`."""
    try:
        return json.loads(text, parse_constant=lambda _: None, parse_float=_finite)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        reason = f"{error.msg} ({line}column {error.colno})"
    except RecursionError:
        reason = "a value is nested too deeply"
    except ValueError:  # Python reads no whole number that is longer
        reason = "a number has too many digits; write it as text, in quotes"
    raise DataError(f"{what} is not JSON: {reason}")


def _row(line: str, number: int) -> Row | BadRow:
    try:
        value = parse_json(line.rstrip(), f"line {number}")
    except DataError as error:
        return BadRow({}, str(error))
    if not isinstance(value, dict):
        return BadRow({}, f"line {number} is not a JSON object but {line.strip()[:40]}")
    return value


def _finite(digits: str) -> float | None:
    """A number too large for a float is none, as NaN is."""
    value = float(digits)
    return value if math.isfinite(value) else None


def write_jsonl(stream: IO[bytes], rows: Iterable[Row]) -> None:
    """Write UTF-8."""
    for row in rows:
        line = as_json(row)
        try:
            data = line.encode()
        except UnicodeEncodeError:  # half a character, as "\ud83d" in the input; only an escape can say it
            data = json.dumps(row, default=str).encode()
        stream.write(data + b"\n")
