"""The rows of a data file: a table, or a .json file, which is a JSON array or, as in the official kit, JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chatglm3.errors import DataError
from chatglm3.tables import BadRow, Row, read_rows
from chatglm3.tables.encoding import find_encoding
from chatglm3.tables.files import COMPRESSIONS, open_bytes, reading
from chatglm3.tables.jsonl import JsonlTable

_MARK = b"\xef\xbb\xbf"


def read_data(path: Path, *, encoding: str | None = None) -> Iterator[Row]:
    """The rows in order, one at least. Raises OSError, or `DataError` naming the line."""
    inner = Path(path.stem) if path.suffix in COMPRESSIONS else path
    if inner.suffix.lower() != ".json":
        yield from read_rows(path, encoding=encoding)
        return
    empty = True
    for row in _array(path) if _is_array(path) else _lines(path, encoding):
        empty = False
        yield row
    if empty:
        raise DataError(f"{path} has no rows")


def _is_array(path: Path) -> bool:
    with reading(path), open_bytes(path) as stream:
        return stream.peek(1 << 12).removeprefix(_MARK).lstrip()[:1] == b"["


def _array(path: Path) -> Iterator[Row]:
    with reading(path), open_bytes(path) as stream:
        data = stream.read()
    for place, row in enumerate(_parse(path, data), 1):
        if not isinstance(row, dict):
            raise DataError(f"{path}, row {place} is not a JSON object but {str(row)[:40]}")
        yield row


def _parse(path: Path, data: bytes) -> list[Any]:
    try:
        rows: list[Any] = json.loads(data.decode("utf-8-sig"), parse_constant=lambda _: None)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(f"{path}, line {line} is not UTF-8, which JSON is; convert the file") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno} is not JSON: {error.msg} (column {error.colno})") from None
    except RecursionError:
        raise DataError(f"{path} is not usable: a value is nested too deeply") from None
    return rows


def _lines(path: Path, encoding: str | None) -> Iterator[Row]:
    for row in JsonlTable(path, find_encoding(path, encoding)).rows():
        if isinstance(row, BadRow):
            raise DataError(f"{path}, {row.error}")
        yield row
