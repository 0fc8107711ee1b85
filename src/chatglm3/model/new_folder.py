"""A model's folder that appears when it is complete."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from chatglm3.errors import CheckpointError

TOKENIZER_FILES = ("tokenizer.model", "tokenizer_config.json")


def require_new(target: Path) -> None:
    """`CheckpointError` if there is something at `target` already, but for an empty folder."""
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise CheckpointError(f"{target}: exists and is not an empty folder; choose another one")


@contextmanager
def new_folder(target: Path, needed: int) -> Iterator[Path]:
    """An empty hidden folder beside `target`, on a disk with `needed` free bytes; at the end it gets its name.

    After a failure it is removed, and a later attempt overwrites what a killed process left. Raises `CheckpointError`
    if `target` holds something already, or if the disk refuses.
    """
    target = target.resolve()
    require_new(target)
    temporary = target.with_name(f".{target.name}.incomplete")
    try:
        lock = _claim(temporary, target)
    except OSError as error:
        raise CheckpointError(f"{target}: cannot write the model ({error}); choose another folder") from None
    try:
        free = shutil.disk_usage(temporary).free
        if needed > free:
            raise OSError(f"{needed / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free")
        yield temporary
        temporary.replace(target)
    except OSError as error:
        raise CheckpointError(
            f"{target}: cannot write the model ({error}); free some space or choose another folder"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(lock)


def _claim(folder: Path, target: Path) -> int:
    """An empty folder, locked until the descriptor is closed; `CheckpointError` if another process has it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise CheckpointError(
            f"{target}: another process is writing it; wait for it, or choose another folder"
        ) from None
    for left in folder.iterdir():
        left.unlink()
    return lock


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copy the files of the tokenizer that a model's folder has."""
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
