"""Models of the ModelScope hub, through its public file-list and file-download addresses.

Files go where ModelScope's own library keeps them: `MODELSCOPE_CACHE` (default ~/.cache/modelscope/hub), under
`models/ORG/NAME` with dots in NAME written `___`. `MODELSCOPE_ENDPOINT` names another host.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from huggingface_hub import get_session

from chatglm3.errors import DownloadError
from chatglm3.model.fetch import RemoteFile, fetch_all, wanted_files

_DEFAULT_ENDPOINT = "https://www.modelscope.cn"
_HEADERS = {"User-Agent": "chatglm3"}
_TIMEOUT_SECONDS = 10
_RECORD = ".sha256.json"


def download(model_id: str, revision: str | None) -> Path:
    """The folder with the files of `model_id` ("ORG/NAME"), fetched if need be; `revision` defaults to "master".

    Without network the folder is used as it is, if it was fetched before. Raises `DownloadError`.
    """
    folder = _cache() / "models" / model_id.replace(".", "___")
    try:
        listing = _list_files(model_id, revision or "master")
    except ConnectionError as error:
        if (folder / "config.json").is_file():
            return folder
        raise DownloadError(
            f"modelscope:{model_id}: cannot be reached ({error}) and is not in {folder}; check the connection or "
            "MODELSCOPE_ENDPOINT, or give a folder that holds the model"
        ) from None
    wanted = {name: listing[name] for name in wanted_files(listing)}
    if not wanted:
        raise DownloadError(f"modelscope:{model_id}: holds no model files; check the name")
    _forget_outdated(folder, wanted)
    fetch_all([_remote_file(model_id, revision or "master", folder / name, item) for name, item in wanted.items()])
    hashes = {name: item.get("Sha256") for name, item in wanted.items()}
    (folder / _RECORD).write_text(json.dumps(hashes, indent=1), encoding="utf-8")
    return folder


def _endpoint() -> str:
    return os.environ.get("MODELSCOPE_ENDPOINT", _DEFAULT_ENDPOINT).rstrip("/")


def _cache() -> Path:
    return Path(os.environ.get("MODELSCOPE_CACHE", "~/.cache/modelscope/hub")).expanduser()


def _list_files(model_id: str, revision: str) -> dict[str, dict[str, Any]]:
    """Name to size and hash of every file in the top folder. `ConnectionError` if the host does not answer."""
    query = urlencode({"Revision": revision, "Recursive": "false"})
    url = f"{_endpoint()}/api/v1/models/{model_id}/repo/files?{query}"
    try:
        response = get_session().get(url, headers=_HEADERS, timeout=_TIMEOUT_SECONDS)
        status, answer = response.status_code, response.json()
    except Exception as error:  # which errors there are depends on the HTTP library beneath huggingface_hub
        raise ConnectionError(str(error) or type(error).__name__) from None
    if status >= 500:
        raise ConnectionError(f"HTTP status {status}")
    if status != 200 or not isinstance(answer, dict) or answer.get("Code") != 200:
        raise DownloadError(f"modelscope:{model_id}: no such model or revision {revision} there; check the name")
    return {item["Path"]: item for item in answer["Data"]["Files"] if item["Type"] == "blob"}


def _forget_outdated(folder: Path, wanted: dict[str, dict[str, Any]]) -> None:
    """Remove files that are not the ones the hub lists now."""
    record = folder / _RECORD
    hashes = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
    for name, item in wanted.items():
        file = folder / name
        same_hash = hashes.get(name, item.get("Sha256")) == item.get("Sha256")
        if file.is_file() and not (same_hash and file.stat().st_size == item["Size"]):
            file.unlink()


def _remote_file(model_id: str, revision: str, target: Path, item: dict[str, Any]) -> RemoteFile:
    query = urlencode({"Revision": revision, "FilePath": item["Path"]})
    url = f"{_endpoint()}/api/v1/models/{model_id}/repo?{query}"
    lock = _cache() / ".locks" / model_id / f"{target.name}.lock"
    return RemoteFile(item["Path"], url, target, lock, item["Size"], item.get("Sha256"), _HEADERS)
