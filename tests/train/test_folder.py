"""The folder of a run: one run at a time, nothing is written over, and what is said when its disk is full."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chatglm3.errors import TrainingError
from chatglm3.train.loop import train
from chatglm3.train.progress import Progress, Silent
from train.runs import metrics, settings
from train.stopping import StopError, Stopper, start, stopped


def test_two_runs_do_not_share_a_folder(model: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    config = settings(model, data, output, steps=100_000, save_every=2)
    with start(tmp_path, config.model_dump(mode="json")) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if line.startswith("step 3/"))
        for resume in (None, "latest"):
            with pytest.raises(TrainingError, match=r"another run is writing into .*; wait for it, or give another"):
                train(config, resume=resume)
        assert process.poll() is None
        process.kill()
        process.communicate()
    with pytest.raises(StopError):
        train(config, resume="2", reporter=Stopper(4))


def test_a_new_run_does_not_write_over_another_one(model: Path, data: Path, tmp_path: Path) -> None:
    stopped(model, data, tmp_path / "out")
    with pytest.raises(TrainingError, match=r"up to step 2; go on with --resume latest, or give another output"):
        train(settings(model, data, tmp_path / "out"))
    for resume, said in (("7", "those of the steps 2"), ("nowhere", "no checkpoint 'nowhere'")):
        with pytest.raises(TrainingError, match=said):
            train(settings(model, data, tmp_path / "out"), resume=resume)
    with pytest.raises(TrainingError, match="begin without --resume"):
        train(settings(model, data, tmp_path / "none"), resume="latest")


@pytest.mark.parametrize("name", ["adapter", "model", "loss.svg", "metrics.jsonl"])
def test_results_and_files_of_others_are_not_written_over(name: str, model: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    stopped(model, data, tmp_path / "first")
    output.mkdir()
    (output / name).write_text("mine")
    for resume in (None, str(tmp_path / "first" / "checkpoint-2")):
        with pytest.raises(TrainingError, match=f"has {name} already; move it, or give another output"):
            train(settings(model, data, output), resume=resume)
    assert [(path.name, path.read_text()) for path in output.iterdir()] == [(name, "mine")]


def test_a_run_that_saved_nothing_begins_again(model: Path, data: Path, tmp_path: Path) -> None:
    stopped(model, data, tmp_path / "out", 1)
    assert (tmp_path / "out" / "metrics.jsonl").exists()
    assert train(settings(model, data, tmp_path / "out")).steps == 6
    assert len(metrics(tmp_path / "out", "loss")) == 6


def test_what_a_killed_save_left_is_no_checkpoint(model: Path, data: Path, tmp_path: Path) -> None:
    stopped(model, data, tmp_path / "out")
    (tmp_path / "out" / "checkpoint-5.incomplete" / "trainer").mkdir(parents=True)
    assert train(settings(model, data, tmp_path / "out"), resume="latest").steps == 6
    assert not list((tmp_path / "out").glob("*.incomplete"))


def test_an_output_that_is_a_file_is_refused(model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    for output in (tmp_path / "out", tmp_path / "out" / "deeper" / "down"):
        with pytest.raises(TrainingError, match="/out is a file; output names a folder"):
            train(settings(model, tmp_path / "nothing.jsonl", output))  # before the rows are read
    assert (tmp_path / "out").read_text() == "mine"


@pytest.fixture
def disk() -> Iterator[Callable[[int], None]]:
    """Sets a size that no file of this process can grow beyond, until the end of the test."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


class FullDisk(Silent):
    """From a step on, no file can be larger than `room` bytes."""

    def __init__(self, step: int, disk: Callable[[int], None], room: int = 2_000) -> None:
        self.step, self.disk, self.room = step, disk, room

    def progress(self, now: Progress) -> None:
        if now.step == self.step:
            self.disk(self.room)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_full_disk_leaves_earlier_checkpoints_whole(
    method: str, model: Path, data: Path, tmp_path: Path, disk: Callable[[int], None]
) -> None:
    output = tmp_path / "out"
    config = settings(model, data, output, method=method, keep=None)
    with pytest.raises(TrainingError, match=r"checkpoint-4 cannot be saved .*since checkpoint-2 is whole") as caught:
        train(config, reporter=FullDisk(4, disk))
    disk(resource.RLIM_INFINITY)
    assert "\n" not in str(caught.value) and "--resume latest" in str(caught.value)
    assert [path.name for path in output.glob("checkpoint-*")] == ["checkpoint-2"]
    whole = train(settings(model, data, tmp_path / "whole", method=method, keep=None))
    resumed = train(config, resume="latest")
    name = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes()


class FullAtTheTest(Silent):
    """The disk is full when the test rows have been measured, and the last checkpoint is written."""

    def __init__(self, disk: Callable[[int], None]) -> None:
        self.disk = disk

    def measured(self, step: int, found: Any) -> None:
        if "test_loss" in found:
            self.disk(2_000)


def test_a_full_disk_is_named_with_the_way_on(
    model: Path, data: Path, tmp_path: Path, disk: Callable[[int], None]
) -> None:
    """Before the first checkpoint: at resolved.yaml, in metrics.jsonl, while saving. After the last: the adapter."""
    output = tmp_path / "out"
    config = settings(model, data, output, data={"train": str(data), "test": str(data)})

    def refusal(reporter: Silent, limit: int) -> str:
        disk(limit)
        with pytest.raises(TrainingError) as caught:
            train(config, reporter=reporter)
        disk(resource.RLIM_INFINITY)
        return str(caught.value)

    full, again = f"{output}: File too large; free some space, and ", "begin again with the same command"
    assert refusal(Silent(), 100).startswith(full + again)
    assert refusal(FullDisk(1, disk, 10), resource.RLIM_INFINITY).startswith(full + again)
    weights = train(settings(model, data, tmp_path / "small", steps=1)).folder / "adapter_model.safetensors"
    for room in (2_000, weights.stat().st_size + 100):  # for the weights as well, but not for the optimizer
        said = refusal(FullDisk(2, disk, room), resource.RLIM_INFINITY)
        assert "checkpoint-2 cannot be saved" in said and again in said and "enforce fail" not in said
    said = refusal(FullAtTheTest(disk), resource.RLIM_INFINITY)
    assert said == full + "go on with --resume latest, since checkpoint-6 is whole"
    assert train(config, resume="latest").folder.is_dir()
    assert len(metrics(output, "test_loss")) == 1
