"""What pyarrow does: Parquet, a batch of rows at a time, and .zst files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import IO, Any

from chatglm3.errors import DataError
from chatglm3.tables.rows import BadRow, Kind, Row, as_text, without_nan

_ROWS_READ, _ROWS_WRITTEN = 256, 4096
_TYPES: dict[Kind, str] = {
    "boolean": "bool_",
    "integer": "int64",
    "number": "float64",
    "text": "string",
    "null": "string",
}


def _pyarrow(module: str = "pyarrow") -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise DataError('.parquet and .zst files need pyarrow: pip install "chatglm3[tables]"') from None


def open_zst(path: Path, mode: str) -> Any:
    """A binary stream that reads ("rb") or writes ("wb") zstd."""
    pa = _pyarrow()
    return (pa.input_stream if mode == "rb" else pa.output_stream)(str(path), compression="zstd")


@dataclass(frozen=True)
class ParquetTable:
    """A Parquet file. Nested columns give lists and dicts; NaN becomes null."""

    path: Path

    @classmethod
    def open(cls, path: Path) -> ParquetTable:
        """Check that it is one. Raises OSError or `DataError`."""
        table = cls(path)
        names = table.schema().names
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(f"{path} has the column {twice[0]!r} twice; give each column a name of its own")
        return table

    def schema(self) -> Any:
        """The Arrow schema."""
        with self._opened() as file:
            return file.schema_arrow

    def rows(self) -> Iterator[Row | BadRow]:
        """The rows in order."""
        with self._opened() as file:
            batches = file.iter_batches(batch_size=_ROWS_READ)
            while (batch := self._checked(next, batches, None)) is not None:
                for row in self._checked(batch.to_pylist):
                    yield {name: without_nan(value) for name, value in row.items()}

    def _opened(self) -> Any:
        with self.path.open("rb"):
            pass  # an OSError that names the file
        return self._checked(_pyarrow("pyarrow.parquet").ParquetFile, str(self.path), buffer_size=1 << 20)

    def _checked(self, function: Any, *arguments: Any, **options: Any) -> Any:
        try:
            return function(*arguments, **options)
        except (OSError, ValueError, _pyarrow().ArrowException) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{self.path} cannot be read as Parquet: {reason}") from None


def write_parquet(stream: IO[bytes], rows: Iterable[Row], kinds: Mapping[str, Kind], like: ParquetTable | None) -> None:
    """Write columns of these kinds; those that `like` has keep its types."""
    pa, parquet = _pyarrow(), _pyarrow("pyarrow.parquet")
    known = {field.name: field.with_nullable(True) for field in like.schema()} if like else {}
    schema = pa.schema([known.get(name) or pa.field(name, getattr(pa, _TYPES[kind])()) for name, kind in kinds.items()])
    texts = [name for name, kind in kinds.items() if kind == "text" and name not in known]
    rows = iter(rows)
    with parquet.ParquetWriter(stream, schema) as writer:
        while batch := list(islice(rows, _ROWS_WRITTEN)):
            data = [row | {name: _text(row[name]) for name in texts if row.get(name) is not None} for row in batch]
            writer.write_table(pa.Table.from_pylist(data, schema=schema))


def _text(value: object) -> str:
    return as_text(value).encode(errors="replace").decode()  # half a character has no place in Arrow
