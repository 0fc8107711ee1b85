"""The rows of a data file: a table, or a .json file, which is a JSON array or, as in the official kit, JSON lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from chatglm3.errors import DataError
from chatglm3.tables import BadRow, Row, read_rows
from chatglm3.tables.encoding import find_encoding, open_text
from chatglm3.tables.files import COMPRESSIONS, reading
from chatglm3.tables.formats import SUFFIXES
from chatglm3.tables.jsonl import JsonlTable, parse_json


def read_data(path: Path, *, encoding: str | None = None) -> Iterator[Row]:
    """The rows in order, one at least. Raises OSError, or `DataError` naming the line."""
    inner = Path(path.stem) if path.suffix in COMPRESSIONS else path
    suffix = inner.suffix.lower()
    if suffix == ".json":
        yield from _json_rows(path, encoding)
    elif suffix in SUFFIXES:
        yield from read_rows(path, encoding=encoding)
    else:
        path.open("rb").close()  # that it is missing comes first
        raise DataError(f"{path}: data are .json, {', '.join(SUFFIXES)} (all but Parquet also .gz or .zst)")


def _json_rows(path: Path, encoding: str | None) -> Iterator[Row]:
    found = find_encoding(path, encoding, longest_line=-1)  # an array may be one line
    empty = True
    for row in _array(path, found) if _is_array(path, found) else _lines(path, found):
        empty = False
        yield row
    if empty:
        raise DataError(f"{path} has no rows")


def _is_array(path: Path, encoding: str) -> bool:
    with reading(path), open_text(path, encoding, newline="") as text:
        return text.read(1 << 12).lstrip()[:1] == "["


def _array(path: Path, encoding: str) -> Iterator[Row]:
    with reading(path), open_text(path, encoding, newline="") as text:
        rows = parse_json(text.read(), str(path))
    for place, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(f"{path}, row {place} is not a JSON object but {str(row)[:40]}")
        yield row


def _lines(path: Path, encoding: str) -> Iterator[Row]:
    for row in JsonlTable(path, encoding).rows():
        if isinstance(row, BadRow):
            raise DataError(f"{path}, {row.error}")
        yield row
