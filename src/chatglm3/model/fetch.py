"""Files from a model hub to disk: which ones are wanted, and a download that resumes at the byte where it stopped."""

from __future__ import annotations

import errno
import hashlib
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub.file_download import http_get
from huggingface_hub.utils import (  # type: ignore[attr-defined]
    WeakFileLock,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from chatglm3.errors import DownloadError

_WANTED = re.compile(r"[^/\\]+\.(safetensors|json)|(pytorch|adapter)_model[^/\\]*\.bin|tokenizer\.model")
_BLOCK = 1 << 22


@dataclass(frozen=True)
class RemoteFile:
    """A file to fetch: from `url` to `target`; `size` and `sha256` as the hub states them, None where it does not."""

    name: str
    url: str
    target: Path
    lock: Path
    size: int | None = None
    sha256: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def partial(self) -> Path:
        """Where the bytes are until all have arrived."""
        return self.target.with_name(self.target.name + ".incomplete")

    @property
    def missing_bytes(self) -> int:
        """Bytes still to come, as far as is known."""
        if self.target.exists() or self.size is None:
            return 0
        return self.size - (self.partial.stat().st_size if self.partial.exists() else 0)


def wanted_files(names: Iterable[str]) -> list[str]:
    """The files of a repository that a model needs: weights, JSON and tokenizer.model, from its top folder.

    Never code; and no `.bin` weights where the same model is there as safetensors.
    """
    wanted = [name for name in names if _WANTED.fullmatch(name)]
    if any(name.endswith(".safetensors") for name in wanted):
        wanted = [name for name in wanted if not name.endswith((".bin", ".bin.index.json"))]
    return wanted


def is_weights(name: str) -> bool:
    """Whether a wanted file is a file of weights."""
    return name.endswith((".safetensors", ".bin"))


def fetch_all(files: Sequence[RemoteFile]) -> None:
    """Fetch the files that are not there yet.

    Raises `DownloadError` before the first if the disk cannot hold them all.
    """
    missing = sum(file.missing_bytes for file in files)
    for folder in {file.target.parent for file in files}:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if missing > free:
            raise DownloadError(
                f"{folder}: {missing / 1e9:.1f} GB are to come and {free / 1e9:.1f} GB are free; free some space, or "
                "set HF_HOME or MODELSCOPE_CACHE to a larger disk"
            )
    for file in files:
        file.lock.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(file.lock):
            if not file.target.exists():
                _fetch(file)


@contextmanager
def progress_bars(shown: bool) -> Iterator[None]:
    """Show or hide huggingface_hub's progress bars for a while."""
    hidden_before = are_progress_bars_disabled()
    if not shown:
        disable_progress_bars()
    try:
        yield
    finally:
        if not shown and not hidden_before:
            enable_progress_bars()


def _fetch(file: RemoteFile) -> None:
    if file.missing_bytes < 0:
        file.partial.unlink()
    headers = {**file.headers, "Accept-Encoding": "identity"}  # positions in a compressed stream are no use
    try:
        with file.partial.open("ab") as opened:
            http_get(
                file.url,
                opened,
                resume_size=opened.tell(),
                headers=headers,
                expected_size=file.size,
                displayed_filename=file.name,
            )
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        file.partial.unlink()
        raise DownloadError(f"{file.target.parent}: the disk is full; free some space and run this again") from None
    if file.sha256 is not None and _sha256(file.partial) != file.sha256:
        file.partial.unlink()
        raise DownloadError(f"{file.name}: arrived damaged (SHA-256 differs) and was removed; run this again")
    file.partial.replace(file.target)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
