"""Names to folders, against a hub on this machine; each download runs in a process with its own environment."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatglm3.errors import DownloadError
from chatglm3.model.fetch import wanted_files
from chatglm3.model.hub import resolve
from model.hub_server import COMMIT, FILES, REPOSITORY, SHARD, WANTED, Hub, serve

SCRIPT = "import sys; from chatglm3.model.hub import resolve; print(resolve(sys.argv[1], progress=len(sys.argv) > 2))"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve(Hub(dict(FILES))) as hub:
        yield hub


class Client:
    """Calls `resolve` in a fresh process that knows the hub, or the address of none."""

    def __init__(self, home: Path, endpoint: str) -> None:
        self.cache = home / "hub"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "MODELSCOPE_"))}
        self.environment = {**kept, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "NO_PROXY": "127.0.0.1,localhost"}

    def start(self, name: str = REPOSITORY, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, name],
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def folder(self, name: str = REPOSITORY, **environment: str) -> Path:
        """The folder of a download that works."""
        process = self.start(name, **environment)
        out, err = process.communicate()
        assert process.returncode == 0, err
        return Path(out.strip())

    def error(self, name: str = REPOSITORY, **environment: str) -> str:
        """The message of a download that fails with one line."""
        process = self.start(name, **environment)
        _, err = process.communicate()
        assert process.returncode != 0
        message = err.strip().splitlines()[-1]
        assert message.startswith("chatglm3.errors.DownloadError: ")
        return message

    def partial_files(self) -> list[Path]:
        return list(self.cache.rglob("*.incomplete"))


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Client:
    return Client(tmp_path / "home", hub.url)


@pytest.fixture
def offline(tmp_path: Path) -> Client:
    return Client(tmp_path / "home", "http://127.0.0.1:9")


def test_only_model_files_are_fetched_and_only_once(hub: Hub, client: Client) -> None:
    folder = client.folder()
    assert folder == client.cache / "models--org--tiny" / "snapshots" / COMMIT
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {name: FILES[name] for name in WANTED}
    assert {name for _, name, _ in hub.requests} <= WANTED
    hub.requests.clear()
    assert client.folder() == folder
    assert hub.requests == []


def test_bin_weights_are_fetched_where_there_is_nothing_better(hub: Hub, client: Client) -> None:
    for name in [name for name in hub.files if "safetensors" in name]:
        del hub.files[name]
    names = {file.name for file in client.folder().iterdir()}
    assert names == (WANTED - {name for name in WANTED if "safetensors" in name}) | {
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    }
    assert "modeling_chatglm.py" not in {name for _, name, _ in hub.requests}


def test_a_token_goes_to_the_hub_and_not_to_its_storage(hub: Hub, client: Client) -> None:
    client.folder(HF_TOKEN="hf_secret")
    assert hub.tokens == {("127.0.0.1", "Bearer hf_secret"), ("localhost", None)}


def test_a_broken_connection_is_taken_up_where_it_broke(hub: Hub, client: Client) -> None:
    hub.cut["model.safetensors"] = 22 << 20
    assert (client.folder() / "model.safetensors").read_bytes() == SHARD
    assert hub.asked("model.safetensors") == [None, f"bytes={20 << 20}-"]


def test_a_download_stopped_by_ctrl_c_goes_on_in_the_next_process(hub: Hub, client: Client) -> None:
    process = client.start()
    hub.cut["model.safetensors"] = 22 << 20
    hub.interrupt = lambda: (process.send_signal(signal.SIGINT), process.wait())[0]
    _, err = process.communicate()
    assert "KeyboardInterrupt" in err
    (kept,) = (file.stat().st_size for file in client.partial_files())
    assert kept > 0
    assert not (client.cache / "models--org--tiny" / "snapshots").exists()
    assert (client.folder() / "model.safetensors").read_bytes() == SHARD
    assert hub.asked("model.safetensors") == [None, f"bytes={kept}-"]
    assert client.partial_files() == []


def test_damaged_weights_are_removed_and_named(hub: Hub, client: Client) -> None:
    client.folder()
    snapshot, blob = client.cache / "models--org--tiny", None
    for link in snapshot.rglob("model.safetensors"):
        blob = link.resolve()
    assert blob is not None
    shutil.rmtree(snapshot / "snapshots")
    blob.rename(blob.with_name(blob.name + ".incomplete"))
    with blob.with_name(blob.name + ".incomplete").open("r+b") as partial:
        partial.truncate(20 << 20)
        partial.write(b"damage")
    assert "model.safetensors: arrived damaged" in client.error()
    assert client.partial_files() == []
    assert (client.folder() / "model.safetensors").read_bytes() == SHARD


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(hub: Hub, client: Client) -> None:
    hub.declared_size["model.safetensors"] = 10**18
    message = client.error()
    assert "1000000000.0 GB are to come" in message
    assert hub.asked("model.safetensors") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_disk_that_fills_up_is_one_line_and_leaves_nothing(hub: Hub, client: Client) -> None:
    client.folder()
    (blob,) = (link.resolve() for link in client.cache.rglob("model.safetensors"))
    shutil.rmtree(client.cache / "models--org--tiny" / "snapshots")
    blob.unlink()
    blob.with_name(blob.name + ".incomplete").symlink_to("/dev/full")
    assert "the disk is full" in client.error()
    assert client.partial_files() == []


def test_offline_mode_and_a_lost_network_use_the_cache(hub: Hub, client: Client, offline: Client) -> None:
    folder = client.folder()
    hub.requests.clear()
    assert client.folder(HF_HUB_OFFLINE="1") == folder
    assert hub.requests == []
    assert offline.folder() == folder


def test_an_unknown_name_without_network_is_one_line_that_says_what_to_do(offline: Client) -> None:
    message = offline.error("org/unknown")
    assert "org/unknown: http://127.0.0.1:9 cannot be reached and the model is not in" in message
    assert "check the connection" in message
    assert "cannot be reached" in offline.error("org/unknown", HF_HUB_OFFLINE="1")
    assert "check the connection" in offline.error("modelscope:org/unknown", MODELSCOPE_ENDPOINT="http://127.0.0.1:9")


def test_a_name_that_the_hub_does_not_know(client: Client) -> None:
    message = client.error("org/unknown")
    assert "org/unknown: no such model at http://127.0.0.1" in message


def test_a_repository_without_a_model(hub: Hub, client: Client) -> None:
    hub.files = {"README.md": b"", "code.py": b""}
    assert "holds no model files" in client.error()


@pytest.mark.parametrize("name", ["nanoo", "a/b/c", "./org/tiny", "modelscope:tiny", "C:\\models", "", "org/"])
def test_what_is_no_name_of_a_model_is_refused_without_asking_anyone(name: str) -> None:
    with pytest.raises(
        DownloadError, match=re.escape("use nano, nano-base, a folder, ORG/NAME or modelscope:ORG/NAME")
    ):
        resolve(name)


def test_a_folder_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(tmp_path) == tmp_path
    assert resolve(str(tmp_path)) == tmp_path
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("org/tiny") == Path("org/tiny")
    with pytest.raises(DownloadError, match="no such folder"):
        resolve(tmp_path / "absent")


def test_a_bundled_model_is_found_in_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatglm3.model.hub._PACKAGE", tmp_path)
    with pytest.raises(DownloadError, match="nano: not in this installation"):
        resolve("nano")
    (tmp_path / "assets" / "nano").mkdir(parents=True)
    (tmp_path / "nano").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("nano") == tmp_path / "assets" / "nano"


def test_the_choice_of_files() -> None:
    both = ["a.safetensors", "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "x.json", "y.py"]
    assert wanted_files(both) == ["a.safetensors", "x.json"]
    assert wanted_files(both[1:]) == ["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "x.json"]
    assert wanted_files(["../config.json", "a\\b.json", "optimizer.bin", "x.json.py", "tokenizer.model.py"]) == []
