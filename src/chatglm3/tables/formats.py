"""A path to its table: the suffix says which format it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from chatglm3.errors import DataError
from chatglm3.tables.arrow import ParquetTable, write_parquet
from chatglm3.tables.delimited import CsvForm, CsvTable, write_csv
from chatglm3.tables.files import COMPRESSIONS, new_file
from chatglm3.tables.jsonl import JsonlTable, write_jsonl
from chatglm3.tables.rows import BadRow, Kind, Row

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
SUFFIXES = (".jsonl", ".ndjson", *_DELIMITERS, ".parquet")
"""Of the names of tables, without `COMPRESSIONS`."""


class Table(Protocol):
    """A file of rows that can be read again and again."""

    @property
    def path(self) -> Path:
        """Where it is."""

    def rows(self) -> Iterator[Row | BadRow]:
        """Its rows in order, a few of them in memory. Raises OSError or `DataError`."""


def check_name(path: Path) -> None:
    """Refuse a name that does not say which format the file has."""
    _format(path)


def open_table(path: Path, *, encoding: str | None = None) -> Table:
    """The table in a file; its encoding is found, or is `encoding`. Raises OSError, or `DataError` naming the line."""
    path.open("rb").close()  # that it is missing comes before what its name says
    suffix = _format(path)
    if suffix == ".parquet":
        return ParquetTable.open(path)
    if suffix in _DELIMITERS:
        return CsvTable.open(path, encoding, _DELIMITERS[suffix])
    return JsonlTable.open(path, encoding)


def read_rows(path: Path, *, encoding: str | None = None) -> Iterator[Row]:
    """The rows of a file, which must all be good, and one at least. Raises OSError, or `DataError` naming the line."""
    empty = True
    for row in open_table(path, encoding=encoding).rows():
        if isinstance(row, BadRow):
            raise DataError(f"{path}, {row.error}")
        empty = False
        yield row
    if empty:
        raise DataError(f"{path} has no rows")


def write_rows(path: Path, rows: Iterable[Row], kinds: Mapping[str, Kind], like: Table | None = None) -> None:
    """Write a file in the format that its name says; it appears when it is complete.

    `kinds` are the columns (JSONL writes what each row has). A CSV file has the encoding, line ends and delimiter of
    the CSV file `like`, or else what Excel opens: UTF-8 with a byte order mark. A Parquet file keeps the types of the
    Parquet file `like`. Raises OSError.
    """
    suffix = _format(path)
    with new_file(path) as stream:
        if suffix == ".parquet":
            write_parquet(stream, rows, kinds, like if isinstance(like, ParquetTable) else None)
        elif suffix in _DELIMITERS:
            write_csv(stream, rows, list(kinds), _form(suffix, like))
        else:
            write_jsonl(stream, rows)


def _form(suffix: str, like: Table | None) -> CsvForm:
    if not isinstance(like, CsvTable):
        return CsvForm(delimiter=_DELIMITERS[suffix])
    return like.form if _format(like.path) == suffix else replace(like.form, delimiter=_DELIMITERS[suffix])


def _format(path: Path) -> str:
    inner = Path(path.stem) if path.suffix in COMPRESSIONS else path
    suffix = inner.suffix.lower()
    if suffix == ".parquet" and inner is not path:
        raise DataError(f"{path}: Parquet is compressed inside; give the .parquet file itself")
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: a table is {', '.join(SUFFIXES)} (all but Parquet also .gz or .zst)")
    return suffix
