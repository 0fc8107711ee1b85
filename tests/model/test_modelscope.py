"""Models from ModelScope, against a hub on this machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatglm3.errors import DownloadError
from chatglm3.model.hub import resolve
from model.hub_server import FILES, SHARD, WANTED, Hub, serve

NAME = "modelscope:org/tiny"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve(Hub(dict(FILES))) as hub:
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", hub.url)
        monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield hub


def model_files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.startswith(".")}


def test_only_model_files_are_fetched_and_only_once(hub: Hub, tmp_path: Path) -> None:
    folder = resolve(NAME, progress=False)
    assert folder == tmp_path / "models" / "org" / "tiny"
    assert model_files(folder) == {name: FILES[name] for name in WANTED}
    assert {name for _, name, _ in hub.requests} == WANTED
    hub.requests.clear()
    assert resolve(NAME, progress=False) == folder
    assert hub.requests == []


def test_a_file_that_changed_is_fetched_again(hub: Hub) -> None:
    folder = resolve(NAME, progress=False)
    hub.files["model.safetensors"] = SHARD[::-1]  # of the same size
    hub.files["config.json"] = b'{"new": 1}'
    hub.requests.clear()
    resolve(NAME, progress=False)
    assert {name for _, name, _ in hub.requests} == {"model.safetensors", "config.json"}
    assert (folder / "model.safetensors").read_bytes() == SHARD[::-1]


def test_a_download_that_was_stopped_goes_on(hub: Hub, tmp_path: Path) -> None:
    hub.cut["model.safetensors"] = 22 << 20
    hub.interrupt = lambda: os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        resolve(NAME, progress=False)
    folder = tmp_path / "models" / "org" / "tiny"
    assert not (folder / "model.safetensors").exists()
    kept = (folder / "model.safetensors.incomplete").stat().st_size
    assert kept > 0
    assert model_files(resolve(NAME, progress=False)) == {name: FILES[name] for name in WANTED}
    assert hub.asked("model.safetensors") == [None, f"bytes={kept}-"]


def test_damaged_files_are_removed_and_named(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "org" / "tiny"
    folder.mkdir(parents=True)
    partial = folder / "model.safetensors.incomplete"
    partial.write_bytes(b"damage")
    with pytest.raises(DownloadError, match=r"model\.safetensors: arrived damaged"):
        resolve(NAME, progress=False)
    assert not partial.exists()
    partial.write_bytes(SHARD + b"more than there is")
    assert (resolve(NAME, progress=False) / "model.safetensors").read_bytes() == SHARD


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_line_and_leaves_nothing(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "models" / "org" / "tiny"
    folder.mkdir(parents=True)
    (folder / "model.safetensors.incomplete").symlink_to("/dev/full")
    with pytest.raises(DownloadError, match="the disk is full") as caught:
        resolve(NAME, progress=False)
    assert "\n" not in str(caught.value)
    assert list(folder.glob("*.incomplete")) == []


def test_the_cache_serves_without_network(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = resolve(NAME, progress=False)
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    assert resolve(NAME, progress=False) == folder
    with pytest.raises(DownloadError, match="cannot be reached"):
        resolve("modelscope:org/other", progress=False)


def test_names_revisions_and_repositories_without_a_model(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="no such model"):
        resolve("modelscope:org/unknown", progress=False)
    with pytest.raises(DownloadError, match="no such model or revision v9"):
        resolve(NAME, revision="v9", progress=False)
    assert resolve(NAME, revision="v1", progress=False).is_dir()
    hub.files = {"code.py": b""}
    with pytest.raises(DownloadError, match="holds no model files"):
        resolve(NAME, progress=False)


def test_the_progress_bars_are_left_as_they_were(hub: Hub) -> None:
    from huggingface_hub.utils import are_progress_bars_disabled

    before = are_progress_bars_disabled()
    resolve(NAME, progress=False)
    assert are_progress_bars_disabled() == before
