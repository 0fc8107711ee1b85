"""What a job has done so far, in a folder beside its output, so that it can go on after a crash.

    OUTPUT.job/job.json      what the job is: another one must not go on with it
    OUTPUT.job/written       empty; there once the output is being written
    OUTPUT.job/results       one line a window, a checksum and its results as JSON, appended when all are computed

A line that a crash cut short is cut off. The folder is locked while a process works, and removed when the output is
complete.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from array import array
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from chatglm3.errors import JobError
from chatglm3.tables import Row
from chatglm3.tables.files import sync

_FILES = ("job.json", "job.incomplete", "results", "written")


class Journal:
    """The journal of the job that writes `output`, locked while its `with` block runs."""

    def __init__(self, output: Path) -> None:
        """Raises OSError, or `JobError` if another process has it or if there is an output and no journal."""
        self._folder = output.with_name(f"{output.name}.job")
        self._job, self._results = self._folder / "job.json", self._folder / "results"
        self._ends = array("q", [0])  # of each window's line; results stay on the disk
        self._window = lru_cache(maxsize=4)(self.read)
        self._written = self._folder / "written"  # there from the moment when the output is written
        self._folder.mkdir(exist_ok=True)
        foreign = [path.name for path in self._folder.iterdir() if path.name not in _FILES]
        if foreign:
            raise JobError(
                f"{self._folder} holds {foreign[0]}, which is no part of a job; move it, or give another output"
            )
        self._lock = os.open(self._folder, os.O_RDONLY)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise JobError(f"another process is writing {output}; wait for it, or give another output") from None
        self._output = output
        if output.exists() and not self._written.exists():
            self.__exit__()
            raise JobError(f"{output} exists; give another output, or remove it first")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._has_results:
            self.remove()
        os.close(self._lock)

    @property
    def _has_results(self) -> bool:
        return self._results.exists() and self._results.stat().st_size > 0

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self._folder

    @property
    def windows(self) -> int:
        """How many windows are done."""
        return len(self._ends) - 1

    def begin(self, identity: Mapping[str, Any]) -> None:
        """Begin the job, or go on with it; `JobError` names what is not as it was, or the line that is damaged."""
        now = json.loads(json.dumps(identity))
        if self._has_results:
            _require_same(self._begun(), now, self._folder)
            self._recover()
            return
        temporary = self._job.with_suffix(".incomplete")
        self._results.touch()
        temporary.write_text(json.dumps(now))
        sync(temporary)
        temporary.replace(self._job)
        sync(self._folder)

    def _begun(self) -> dict[str, Any]:
        try:
            begun: dict[str, Any] = json.loads(self._job.read_text())
        except ValueError:
            raise JobError(f"{self._job} is damaged; remove {self._folder} to begin anew") from None
        return begun

    def append(self, results: Sequence[Row]) -> None:
        """Add a window; OSError leaves the journal as it was."""
        body = json.dumps(results).encode()
        line = b"%08x %b\n" % (zlib.crc32(body), body)
        with self._results.open("ab", buffering=0) as file:
            try:
                written = 0
                while written < len(line):
                    written += file.write(line[written:])
                os.fsync(file.fileno())
            except OSError:
                file.truncate(self._ends[-1])
                raise
        self._ends.append(self._ends[-1] + len(line))

    def read(self, window: int) -> list[Row]:
        """The results of a window."""
        with self._results.open("rb") as file:
            file.seek(self._ends[window])
            line = file.read(self._ends[window + 1] - self._ends[window])
        results: list[Row] = json.loads(_body(line) or b"[]")
        return results

    def result(self, number: int, window_size: int) -> Row:
        """The result of one prompt."""
        return self._window(number // window_size)[number % window_size]

    def remove(self) -> None:
        """Nothing has to be kept any more: the output is complete, or the job has not begun."""
        for name in _FILES:
            (self._folder / name).unlink(missing_ok=True)
        if self._folder.exists():
            self._folder.rmdir()

    def finish(self) -> None:
        """Say that the output is written now. `JobError` if there is one that is not this job's."""
        if self._output.exists() and not self._written.exists():
            raise JobError(f"{self._output} appeared while the job ran; move it, and run the same command again")
        self._written.touch()

    def _recover(self) -> None:
        """Find the windows that are complete, and cut off what a crash left of one more."""
        with self._results.open("rb+") as file:
            for line in file:
                if _body(line) is None:
                    break
                self._ends.append(self._ends[-1] + len(line))
            if file.read(1):
                raise JobError(
                    f"{self._results}, line {self.windows + 1} is damaged; remove {self._folder} to begin anew"
                )
            file.truncate(self._ends[-1])


def _body(line: bytes) -> bytes | None:
    """The JSON of a line; None if it is not whole."""
    whole = line.endswith(b"\n") and line[:8] == b"%08x" % zlib.crc32(line[9:-1])
    return line[9:-1] if whole else None


def _require_same(was: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> None:
    for name in {**was, **now}:
        if was.get(name) != now.get(name):
            change = f"was {_short(was.get(name))}, is {_short(now.get(name))}"
            raise JobError(f"this job was begun with another {name}: {change}; use it again, or remove {folder}")


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else f"{text[:60]}… ({len(text)} characters)"
