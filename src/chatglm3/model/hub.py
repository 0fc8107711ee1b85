"""A model's name to a folder on this disk: bundled, local, from Hugging Face or from ModelScope.

Only weights, JSON and tokenizer.model are ever fetched, never code. Hugging Face's own cache, its environment variables
(HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE) and its offline mode are used as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import (
    HfApi,
    constants,
    get_hf_file_metadata,
    hf_hub_url,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

import chatglm3
from chatglm3.errors import DownloadError
from chatglm3.model import modelscope
from chatglm3.model.fetch import RemoteFile, fetch_all, is_weights, progress_bars, wanted_files

BUNDLED = ("nano", "nano-base")
_PACKAGE = Path(chatglm3.__file__).parent
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_MODELSCOPE = "modelscope:"
_SHA256 = re.compile(r"[0-9a-f]{64}")


def resolve(name: str | Path, *, revision: str | None = None, progress: bool = True) -> Path:
    """The folder of the model called `name`, downloaded if it is not here.

    `name` is "nano" or "nano-base", a folder, a Hugging Face id ("zai-org/chatglm3-6b") or "modelscope:ORG/NAME",
    looked up in this order; `revision` is a branch, tag or commit of a hub. A download that stopped goes on from there.
    Raises `DownloadError` in one line for a name that is unknown or cannot be fetched.
    """
    text = str(name)
    if text in BUNDLED:
        return _bundled(text)
    if text and Path(text).expanduser().is_dir():
        return Path(text).expanduser()
    with progress_bars(progress), _one_error(text):
        if text.startswith(_MODELSCOPE) and _REPOSITORY.fullmatch(text.removeprefix(_MODELSCOPE)):
            return modelscope.download(text.removeprefix(_MODELSCOPE), revision)
        if isinstance(name, str) and _REPOSITORY.fullmatch(text) and not text.startswith("."):
            return _hugging_face(text, revision)
    raise DownloadError(
        f"{text}: no such folder, and not the name of a model; use {', '.join(BUNDLED)}, a folder, ORG/NAME or "
        f"{_MODELSCOPE}ORG/NAME"
    )


def _bundled(name: str) -> Path:
    folder = _PACKAGE / "assets" / name
    if not folder.is_dir():
        raise DownloadError(f"{name}: not in this installation of chatglm3; install the package again")
    return folder


def _hugging_face(name: str, revision: str | None) -> Path:
    try:
        info = HfApi().model_info(name, revision=revision)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except Exception:  # no connection, in whichever HTTP library is beneath: what the cache holds has to do
        return Path(snapshot_download(name, revision=revision, allow_patterns="config.json", local_files_only=True))
    names = wanted_files(file.rfilename for file in info.siblings or ())
    if not names or info.sha is None:
        raise DownloadError(f"{name}: holds no model files; check the name")
    # Weights are put into the cache here, because huggingface_hub starts a file again from its first byte; the
    # library then finds them there, fetches the small files and makes the snapshot.
    missing = [file for file in names if is_weights(file) and not _is_cached(name, info.sha, file)]
    fetch_all([_weights(name, info.sha, file) for file in missing])
    return Path(snapshot_download(name, revision=revision or constants.DEFAULT_REVISION, allow_patterns=names))


def _is_cached(name: str, commit: str, filename: str) -> bool:
    return isinstance(try_to_load_from_cache(name, filename, revision=commit), str)


def _weights(name: str, commit: str, filename: str) -> RemoteFile:
    url = hf_hub_url(name, filename, revision=commit)
    metadata = get_hf_file_metadata(url)
    if metadata.etag is None:
        raise DownloadError(f"{url}: the server names no version (ETag) of the file; check HF_ENDPOINT")
    repository = repo_folder_name(repo_id=name, repo_type="model")
    cache = Path(constants.HF_HUB_CACHE)
    return RemoteFile(
        filename,
        url,
        target=cache / repository / "blobs" / metadata.etag,
        lock=cache / ".locks" / repository / f"{metadata.etag}.lock",
        size=metadata.size,
        sha256=metadata.etag if _SHA256.fullmatch(metadata.etag) else None,
        headers=build_hf_headers(),
    )


@contextmanager
def _one_error(name: str) -> Iterator[None]:
    """Turn everything that can go wrong with a hub into a `DownloadError`."""
    try:
        yield
    except DownloadError:
        raise
    except RevisionNotFoundError:
        raise DownloadError(f"{name}: has no such revision; check it, or leave it out") from None
    except RepositoryNotFoundError:
        raise DownloadError(
            f"{name}: no such model at {constants.ENDPOINT}, or no access to it; check the name, or set HF_TOKEN"
        ) from None
    except LocalEntryNotFoundError:
        raise DownloadError(
            f"{name}: {constants.ENDPOINT} cannot be reached and the model is not in {constants.HF_HUB_CACHE}; check "
            "the connection, HF_ENDPOINT and HF_HUB_OFFLINE, or give a folder that holds the model"
        ) from None
    except Exception as error:  # which errors there are depends on the HTTP library beneath huggingface_hub
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DownloadError(
            f"{name}: the download stopped ({reason}); check the connection and run this again to go on from there"
        ) from error
