"""The folder that a run writes into: it has it alone, and writes over no other run's results."""

from __future__ import annotations

import errno
import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from chatglm3.errors import TrainingError
from chatglm3.train.checkpoints import TEMPORARY, checkpoints_of, way_on

METRICS = "metrics.jsonl"
CONFIG = "resolved.yaml"
PLOT = "loss.svg"
_LOCK = ".lock"
_RESULTS = ("adapter", "model", PLOT)  # a run that ended has them
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def refuse_begun(output: Path) -> None:
    """Raise `TrainingError` if a new run cannot have the folder.

    What a run left that was stopped before its first checkpoint is no obstacle.
    """
    for path in (output, *output.parents):
        if path.is_file():
            raise TrainingError(f"{path} is a file; output names a folder, so give another one")
    if (output / _LOCK).is_file():
        with (output / _LOCK).open() as lock:
            _take(lock, output, fcntl.LOCK_SH)  # processes of one run look at the same time
    there = checkpoints_of(output)
    if there:
        raise TrainingError(
            f"{output} has checkpoints up to step {max(there)}; go on with --resume latest, or give another output"
        )
    results = _RESULTS if (output / CONFIG).exists() else (*_RESULTS, METRICS)
    for name in results:
        if (output / name).exists():
            raise TrainingError(f"{output} has {name} already; move it, or give another output")


@contextmanager
def claimed(output: Path) -> Iterator[None]:
    """Make the folder and keep other runs out of it while the block runs; one that stays empty is removed.

    Raises `TrainingError` if another run is in it, or if the disk is full before the block ends.
    """
    output.mkdir(parents=True, exist_ok=True)
    with (output / _LOCK).open("a") as lock:
        _take(lock, output, fcntl.LOCK_EX)
        if not (output / _LOCK).exists():
            raise TrainingError(f"another run was in {output} just now; run the same command again")
        try:
            remove_unfinished(output)
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            raise TrainingError(f"{output}: {error.strerror}; free some space, and {way_on(output)}") from None
        finally:
            if [path.name for path in output.iterdir()] == [_LOCK]:
                shutil.rmtree(output)


def remove_unfinished(output: Path) -> None:
    """Remove what a run that was killed while it saved has left."""
    for folder in output.glob("*" + TEMPORARY):
        if folder.is_dir():
            shutil.rmtree(folder)


def _take(lock: IO[str], output: Path, how: int) -> None:
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        raise TrainingError(f"another run is writing into {output}; wait for it, or give another output") from None
    except OSError as error:
        raise TrainingError(f"{output} cannot be locked ({error.strerror}); give an output on another disk") from None
