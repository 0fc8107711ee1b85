"""Models from memory to disk, also when the disk refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from chatglm3.errors import CheckpointError
from chatglm3.model.checkpoint import load_model, save_model
from chatglm3.model.saving import plan_shards
from model.small import logits_of, random_model

INDEX = "model.safetensors.index.json"


def test_saving_replaces_the_weights_that_were_there(bin_folder: Path) -> None:
    (bin_folder / "tokenizer.model").write_bytes(b"kept")
    save_model(random_model(), bin_folder, max_shard_bytes=40_000)
    assert not (bin_folder / "pytorch_model.bin").exists()
    save_model(random_model(), bin_folder)
    assert sorted(file.name for file in bin_folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.model"]
    assert torch.equal(logits_of(load_model(bin_folder, device="cpu", dtype="float16")), logits_of(random_model()))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize("file", [INDEX, "config.json"])
def test_a_full_disk_leaves_what_was_there(file: str, sharded: Path) -> None:
    before = {path.name: path.read_bytes() for path in sharded.iterdir()}
    (sharded / f"{file}.incomplete").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match="cannot save") as caught:
        save_model(random_model().float(), sharded, max_shard_bytes=80_000)
    assert "\n" not in str(caught.value)
    assert not list(sharded.glob("*.incomplete"))
    assert {path.name: path.read_bytes() for path in sharded.iterdir()} == before


@pytest.mark.parametrize("exists", [True, False])
def test_a_shard_that_cannot_be_written_leaves_what_was_there(exists: bool, sharded: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    largest = max(file.stat().st_size for file in sharded.glob("*.safetensors"))
    folder = tmp_path / "target"
    if exists:
        save_model(random_model(), folder)
    before = {path.name: path.read_bytes() for path in folder.glob("*")}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, limit[1]))  # the disk refuses what goes beyond
    try:
        with pytest.raises(CheckpointError, match="cannot save"):
            save_model(random_model(), folder, max_shard_bytes=40_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert folder.exists() == exists
    assert {path.name: path.read_bytes() for path in folder.glob("*")} == before


def test_saving_where_nothing_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot save"):
        save_model(random_model(), tmp_path / "file" / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_shards_keep_the_order_and_the_limit() -> None:
    sizes = {"a": 4, "b": 4, "c": 30, "d": 3, "e": 6}
    assert list(plan_shards(sizes, 10).values()) == [["a", "b"], ["c"], ["d", "e"]]
    assert list(plan_shards(sizes, 10)) == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert plan_shards(sizes, 100) == {"model.safetensors": list("abcde")}
