"""CSV and its relatives. Every cell is text, or null where it is empty or NaN (as pandas writes a missing value)."""

from __future__ import annotations

import codecs
import csv
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from chatglm3.errors import DataError
from chatglm3.tables.encoding import LONGEST_LINE, UNICODE, find_encoding, open_text
from chatglm3.tables.files import reading
from chatglm3.tables.rows import BadRow, Row, as_text

DELIMITERS = ",\t;|"
_NULL = ("", "NaN", "nan")
csv.field_size_limit(LONGEST_LINE)  # of the process; Python's own limit is 128 KiB, less than a long context holds


@dataclass(frozen=True)
class CsvForm:
    """How a CSV file is written."""

    encoding: str = "utf-8-sig"
    delimiter: str = ","
    line_end: str = "\r\n"


@dataclass(frozen=True)
class CsvTable:
    """A CSV file whose form is known."""

    path: Path
    form: CsvForm

    @classmethod
    def open(cls, path: Path, encoding: str | None, delimiter: str) -> CsvTable:
        """Find out its encoding and line ends and, from its first line, the delimiter, if not `delimiter`."""
        found = find_encoding(path, encoding)
        with reading(path), open_text(path, found, newline="") as text:
            line = text.readline(LONGEST_LINE)
        bare = re.sub(r'"[^"]*"', "", line)
        best = max(delimiter + DELIMITERS, key=bare.count)
        end = re.search(r"\r?\n?$", line)
        return cls(path, CsvForm(found, best, end[0] if end and end[0] else "\n"))

    def rows(self) -> Iterator[Row | BadRow]:
        """The rows in order; lines without a cell are none."""
        with reading(self.path), open_text(self.path, self.form.encoding, newline="") as text:
            reader = csv.reader(text, delimiter=self.form.delimiter, strict=True)
            names: list[str] | None = None
            for line, cells in self._records(reader):
                if isinstance(cells, str):
                    yield BadRow({}, f"line {line}: {cells}")
                elif names is None:
                    names = self._header(cells)
                else:
                    yield _row(line, cells, names)

    def _records(self, reader: Any) -> Iterator[tuple[int, list[str] | str]]:
        """Each record's line and its cells, or what is wrong with it."""
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                if reader.line_num > line:
                    raise DataError(
                        f"{self.path}: a quoted cell that begins in line {line} does not end as it should up to line "
                        f"{reader.line_num} ({error}), so where rows begin is not known; correct the quotes"
                    ) from None
                yield line, str(error)
                continue
            if cells is None:
                return
            if cells:
                yield line, cells

    def _header(self, cells: list[str]) -> list[str]:
        names = _without_empty_end(cells)
        twice = sorted({name for name in names if names.count(name) > 1 and name})
        if twice or "" in names:
            fault = f"has the column {twice[0]!r} twice" if twice else f"has no name for column {names.index('') + 1}"
            raise DataError(f"{self.path}: the first line {fault}; give each column a name of its own")
        return names


def _row(line: int, cells: list[str], names: Sequence[str]) -> Row | BadRow:
    if len(cells) > len(names):
        cells = [*cells[: len(names)], *_without_empty_end(cells[len(names) :])]
    row: Row = {name: None if cell in _NULL else cell for name, cell in zip(names, cells, strict=False)}
    if len(cells) != len(names):
        return BadRow(row, f"line {line} has {len(cells)} cells where the first line has {len(names)}")
    return row


def _without_empty_end(cells: list[str]) -> list[str]:
    """Excel writes empty cells behind the table where something stood once."""
    end = len(cells)
    while end and not cells[end - 1]:
        end -= 1
    return cells[:end]


def write_csv(stream: IO[bytes], rows: Iterable[Row], names: Sequence[str], form: CsvForm) -> None:
    """Write the columns `names` of all rows; what a row lacks is empty."""
    encoding = form.encoding if form.encoding in UNICODE else CsvForm.encoding
    text = codecs.getwriter(encoding)(stream, "replace")  # only half a character has no encoding there
    writer = csv.writer(text, delimiter=form.delimiter, lineterminator=form.line_end)
    writer.writerow(names)
    for row in rows:
        writer.writerow([as_text(row.get(name)) for name in names])
