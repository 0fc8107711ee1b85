"""What a job has done so far, in a folder beside its output, so that it can go on after a crash.

    OUTPUT.job/job.json      what the job is: another one must not go on with it
    OUTPUT.job/written       empty; there once the output is being written
    OUTPUT.job/results       one line a window, a checksum and its results as JSON, appended when all are computed

A line that a crash cut short is cut off. The folder is locked while a process works, and removed when the output is
complete. job.json is written first and removed last: a folder with files and without it is another's, and left alone.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from array import array
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from chatglm3.bulk.identity import FILE, UNFINISHED, Identity
from chatglm3.errors import JobError
from chatglm3.tables import Row
from chatglm3.tables.files import sync

_FILES = ("written", "results", UNFINISHED, FILE)  # in the order in which they are removed


def journal_folder(output: Path) -> Path:
    """The folder that is there while a job that writes `output` has something to go on with."""
    return output.with_name(f"{output.name}.job")


class Journal:
    """The journal of the job that writes `output`, locked while its `with` block runs."""

    def __init__(self, output: Path) -> None:
        """Raises OSError, or `JobError`: another process has it, the folder is no job's, there is an output alone."""
        self._folder = journal_folder(output)
        self._results = self._folder / "results"
        self._ends = array("q", [0])  # of each window's line; results stay on the disk
        self._window = lru_cache(maxsize=4)(self.read)
        self._written = self._folder / "written"  # there from the moment when the output is written
        self._output = output
        self._folder.mkdir(exist_ok=True)
        self._lock = os.open(self._folder, os.O_RDONLY)
        try:
            self._take(output)
        except BaseException:
            os.close(self._lock)
            raise
        if output.exists() and not self._written.exists():
            self.__exit__()
            raise JobError(f"{output} exists; give another output, or remove it first")

    def _take(self, output: Path) -> None:
        """Lock the folder and see whose it is; nothing of what others keep there is touched."""
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JobError(f"another process is writing {output}; wait for it, or give another output") from None
        names = sorted(path.name for path in self._folder.iterdir())
        self._was = Identity.read(self._folder)
        known = _FILES if self._was else (UNFINISHED,)
        foreign = [name for name in names if name not in known]
        if foreign:
            raise JobError(
                f"{self._folder} holds {foreign[0]}, which is no part of a job or damaged; "
                "move the folder, or give another output"
            )

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

    def begin(self, identity: Identity) -> None:
        """Begin the job, or go on with it; `JobError` names what is not as it was, or the line that is damaged."""
        if self._was is not None and self._has_results:
            identity.require_same(self._was, self._folder)
            self._recover()
        else:
            identity.write(self._folder)
            self._results.touch()
            sync(self._folder)

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
