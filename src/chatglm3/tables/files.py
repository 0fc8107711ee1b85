"""Files as streams of bytes: compressed ones too, and new ones that appear when they are complete."""

from __future__ import annotations

import gzip
import io
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from chatglm3.errors import DataError
from chatglm3.tables.arrow import open_zst

COMPRESSIONS = (".gz", ".zst")


def open_bytes(path: Path) -> io.BufferedReader:
    """The file's bytes, decompressed. Raises OSError, or `DataError` without pyarrow."""
    if path.suffix == ".gz":
        return cast(io.BufferedReader, gzip.open(path))
    if path.suffix == ".zst":
        return io.BufferedReader(open_zst(path, "rb"))
    return path.open("rb")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What a damaged file raises, as a `DataError`."""
    try:
        yield
    except (EOFError, zlib.error, UnicodeError) as error:
        raise DataError(f"{path} cannot be read, it is damaged or was changed just now: {error}") from None
    except OSError as error:
        if error.filename is not None:
            raise
        raise DataError(f"{path} cannot be read: {error}") from None


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """A stream to a temporary file beside `path`, which takes its name when all is on the disk."""
    temporary = path.with_name(f"{path.name}.incomplete")
    try:
        with _open_new(temporary, path.suffix) as stream:
            yield stream
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of files, is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _open_new(path: Path, compression: str) -> Iterator[IO[bytes]]:
    if compression == ".zst":
        with open_zst(path, "wb") as stream:
            yield stream
        return
    with path.open("wb") as raw:
        if compression == ".gz":  # without a name and a time in it, so that the same rows give the same bytes
            with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as stream:
                yield cast(IO[bytes], stream)
        else:
            yield raw
