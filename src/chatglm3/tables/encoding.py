"""Which encoding a text file has, decided on all of its bytes, so that reading it afterwards cannot fail half way.

Excel writes GBK (here GB18030, which contains it), UTF-8 with a byte order mark, or UTF-16 with one. Without a mark
every line speaks: one that is valid UTF-8 with a Chinese character is UTF-8, one that is not valid UTF-8 but valid
GB18030 is that, and the file must not have both. (For a line of GB18030 to be valid UTF-8 with three-byte characters,
all of it must consist of rare characters in a rare order.)
"""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from pathlib import Path

from chatglm3.errors import DataError
from chatglm3.tables.files import open_bytes, reading

UNICODE = ("utf-8", "utf-8-sig", "utf-16", "gb18030")
"""Encodings in which every text can be written."""
LONGEST_LINE = 16 << 20
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def find_encoding(path: Path, given: str | None = None, *, longest_line: int = LONGEST_LINE) -> str:
    """The Python name of the file's encoding, `given` if it is that. Raises OSError, or `DataError` naming the line.

    `longest_line` is in bytes; -1 allows any.
    """
    with reading(path), open_bytes(path) as stream:
        start = stream.peek(3)
        marked = next((name for mark, name in _MARKS.items() if start.startswith(mark)), None)
        if given is not None:
            name = _name(given)
            encoding = "utf-8-sig" if (name, marked) == ("utf-8", "utf-8-sig") else name
        elif marked is None:
            return _decide(stream, path, longest_line)
        else:
            encoding = marked
        _check(stream, encoding, path)
        return encoding


def open_text(path: Path, encoding: str, newline: str) -> io.TextIOWrapper:
    """The file's text; `newline` as in `open`."""
    return io.TextIOWrapper(open_bytes(path), encoding, newline=newline)


def _name(given: str) -> str:
    try:
        return codecs.lookup(given).name
    except LookupError:
        raise DataError(f"unknown encoding {given!r}; use utf-8, gb18030, utf-16 or another one of Python's") from None


def _decide(stream: io.BufferedReader, path: Path, longest_line: int) -> str:
    first: dict[str, int] = {}
    for number, line in _lines(stream, path, longest_line):
        if not (b"\0" in line or line.isascii()):
            kind = _kind(line)
        elif b"\0" in line:
            raise DataError(f"{path}, line {number}: a zero byte; if the file is UTF-16 give --encoding utf-16-le")
        else:
            continue
        if kind is None:
            raise DataError(f"{path}, line {number} is neither UTF-8 nor GB18030; name its encoding with --encoding")
        if kind != "either":
            first.setdefault(kind, number)
        if len(first) > 1:
            (one, place), (other, _) = first.items()
            raise DataError(f"{path}, line {number} is {other.upper()}, but line {place} is {one.upper()}; convert one")
    return next(iter(first), "utf-8")


def _kind(line: bytes) -> str | None:
    """What a line that is not ASCII can be read as; "either" where both are possible and neither is sure."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        return "gb18030" if _is_gb18030(line) else None
    return "either" if max(text) < "\u0800" and _is_gb18030(line) else "utf-8"


def _is_gb18030(line: bytes) -> bool:
    try:
        line.decode("gb18030")
    except UnicodeDecodeError:
        return False
    return True


def _lines(stream: io.BufferedReader, path: Path, longest: int) -> Iterator[tuple[int, bytes]]:
    number = 0
    while line := stream.readline(longest):
        number += 1
        if len(line) == longest:
            raise DataError(f"{path}, line {number} is longer than {longest >> 20} MiB; is this a table?")
        yield number, line


def _check(stream: io.BufferedReader, encoding: str, path: Path) -> None:
    """Decode all of the stream, to find out whether that can be done."""
    decoder = codecs.getincrementaldecoder(encoding)()
    line, done = 1, False
    while not done:
        data = stream.read(1 << 16)
        done = not data
        state = decoder.getstate()
        try:
            line += decoder.decode(data, done).count("\n")
        except UnicodeDecodeError as error:
            decoder.setstate((b"", state[1]))
            line += decoder.decode(error.object[: error.start]).count("\n")
            raise DataError(f"{path}, line {line} is not {encoding.upper()}: {error.reason}") from None
        except UnicodeError as error:  # UTF-16 without a mark
            raise DataError(f"{path}, line {line} is not {encoding.upper()}: {error}") from None
