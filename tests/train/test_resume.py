"""Runs that were stopped: they go on as if they had not been, and only as the run that they are."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from chatglm3.errors import TrainingError
from chatglm3.train.loop import train
from train.runs import data_file, metrics, model_folder, random_rows, settings

NAME = {"lora": "adapter_model.safetensors", "ptuning": "model.safetensors", "full": "model.safetensors"}


@pytest.fixture(scope="module")
def model(tiny_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("models") / "tiny", tiny_tokenizer_dir)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return data_file(tmp_path / "train.jsonl", 14)


def start(folder: Path, config: dict[str, Any], *words: str) -> subprocess.Popen[str]:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "-m", "chatglm3", "train", str(file), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill_at(process: subprocess.Popen[str], line: str) -> None:
    """Kill the process when it says `line`."""
    assert process.stderr is not None
    for said in process.stderr:
        if said.startswith(line):
            process.kill()
            break
    process.communicate()
    assert process.wait() == -signal.SIGKILL


def test_killed_and_resumed_gives_the_weights_of_a_run_that_was_not(model: Path, data: Path, tmp_path: Path) -> None:
    output = tmp_path / "killed"
    changes = {"steps": 60, "save_every": 5, "lora": {"dropout": 0.1}, "accumulation": 2, "batch_size": 2}
    changes |= {"data": {"train": str(data), "validation": str(data)}, "evaluation": {"every": 10}}
    config = settings(model, data, output, **changes)
    kill_at(start(tmp_path, config.model_dump(mode="json")), "step 12/60")
    assert not (output / "adapter").exists()
    kill_at(start(tmp_path, config.model_dump(mode="json"), "--resume", "latest"), "step 33/60")
    process = start(tmp_path, config.model_dump(mode="json"), "--resume", "latest")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "going on from" in err and "done after 60 steps" in out
    whole = train(settings(model, data, tmp_path / "whole", **changes))
    assert (output / "adapter" / NAME["lora"]).read_bytes() == (whole.folder / NAME["lora"]).read_bytes()
    assert metrics(output, "loss") == metrics(tmp_path / "whole", "loss")
    assert metrics(output, "validation_loss") == metrics(tmp_path / "whole", "validation_loss")


class StopError(Exception):
    """What stops a run in the middle."""


class Stopper:
    def __init__(self, step: int) -> None:
        self.step = step

    def note(self, text: str) -> None: ...

    def measured(self, step: int, found: Any) -> None: ...

    def progress(self, now: Any) -> None:
        if now.step == self.step:
            raise StopError


def stopped(model: Path, data: Path, output: Path, step: int = 3, /, **changes: Any) -> None:
    with pytest.raises(StopError):
        train(settings(model, data, output, **changes), reporter=Stopper(step))


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "ptuning", "ptuning": {"length": 3}},
        {"method": "full"},
        {"method": "full", "optimizer": "muon", "hidden_dropout": 0.1},
        {"quantize": 8},
    ],
)
def test_every_method_goes_on_bit_for_bit(changes: dict[str, Any], model: Path, data: Path, tmp_path: Path) -> None:
    stopped(model, data, tmp_path / "stopped", **changes)
    resumed = train(settings(model, data, tmp_path / "stopped", **changes), resume="2")
    whole = train(settings(model, data, tmp_path / "whole", **changes))
    name = NAME[changes.get("method", "lora")]
    assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    done = train(settings(model, data, tmp_path / "whole", **changes), resume="latest")
    assert (done.steps, done.loss) == (6, None)


def test_rows_made_in_python_go_on_as_the_same_rows_only(model: Path, tmp_path: Path) -> None:
    rows = random_rows(256, (9, 12, 7, 20, 15))
    weighted = replace(rows, rows=tuple(row._replace(weights=[2.0] * len(row.labels)) for row in rows.rows))
    config = settings(model, Path("nothing"), tmp_path / "out", data={"kind": "chat"})
    with pytest.raises(TrainingError, match="name the file of the rows"):
        train(config)
    with pytest.raises(StopError):
        train(config, rows=weighted, reporter=Stopper(3))
    with pytest.raises(TrainingError, match="another training data"):
        train(config, rows=rows, resume="2")
    resumed = train(config, rows=weighted, resume="2")
    whole = train(settings(model, Path("nothing"), tmp_path / "whole", data={"kind": "chat"}), rows=weighted)
    assert (resumed.folder / NAME["lora"]).read_bytes() == (whole.folder / NAME["lora"]).read_bytes()


def test_a_run_goes_on_in_another_place_and_saves_as_it_likes(model: Path, data: Path, tmp_path: Path) -> None:
    stopped(model, data, tmp_path / "stopped")
    moved = data.rename(tmp_path / "moved.jsonl")
    folder = model_folder(tmp_path / "model", model)
    config = settings(folder, moved, tmp_path / "other", save_every=3, keep=None)
    result = train(config, resume=str(tmp_path / "stopped" / "checkpoint-2"))
    assert result.steps == 6
    assert sorted(path.name for path in (tmp_path / "other").glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]
    again = train(settings(folder, moved, tmp_path / "third"), resume=str(tmp_path / "other" / "checkpoint-6"))
    assert (again.folder / NAME["lora"]).read_bytes() == (result.folder / NAME["lora"]).read_bytes()


def test_a_best_checkpoint_that_is_elsewhere_is_forgotten(model: Path, data: Path, tmp_path: Path) -> None:
    files = {"train": str(data), "validation": str(data)}
    stopped(model, data, tmp_path / "stopped", 5, data=files)
    config = settings(model, data, tmp_path / "other", data=files)
    result = train(config, resume=str(tmp_path / "stopped" / "checkpoint-4"))
    assert result.best_step == 6 and result.validation_loss == metrics(tmp_path / "other", "validation_loss")[-1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora": {"rank": 4}}, "was made with lora.rank=8, not 4: use the same, or begin a new run"),
        ({"learning_rate": 0.5}, "learning_rate=0.001, not 0.5"),
        ({"batch_size": 2}, "batch_size=4, not 2"),
        ({"seed": 3}, "seed=0, not 3"),
        ({"steps": 9}, "steps=6, not 9"),
        ({"method": "full"}, 'method="lora", not "full"'),
        ({"dtype": "bfloat16"}, 'dtype="float32", not "bfloat16"'),
    ],
)
def test_another_config_is_refused_by_its_key(
    changes: dict[str, Any], said: str, model: Path, data: Path, tmp_path: Path
) -> None:
    stopped(model, data, tmp_path / "out")
    with pytest.raises(TrainingError) as caught:
        train(settings(model, data, tmp_path / "out", **changes), resume="latest")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_another_model_and_other_data_are_refused(
    model: Path, data: Path, tmp_path: Path, tiny_tokenizer_dir: Path
) -> None:
    stopped(model, data, tmp_path / "out")
    other = model_folder(tmp_path / "model", tiny_tokenizer_dir, seed=1)
    with pytest.raises(TrainingError, match="belongs to a run with another model"):
        train(settings(other, data, tmp_path / "out"), resume="latest")
    data_file(data, 13)
    with pytest.raises(TrainingError, match="belongs to a run with another training data"):
        train(settings(model, data, tmp_path / "out"), resume="latest")


def test_another_version_and_damaged_files_are_refused(model: Path, data: Path, tmp_path: Path) -> None:
    stopped(model, data, tmp_path / "out")
    config, trainer = settings(model, data, tmp_path / "out"), tmp_path / "out" / "checkpoint-2" / "trainer"
    record = json.loads((trainer / "state.json").read_text())
    for text, said in (
        (json.dumps({**record, "version": 99}), "written by another version of chatglm3 (format 99, here 1)"),
        ("{}", "is not the state of a training run"),
        ("{", "is not the state of a training run"),
    ):
        (trainer / "state.json").write_text(text)
        with pytest.raises(TrainingError) as caught:
            train(config, resume="latest")
        assert said in str(caught.value)
    (trainer / "state.json").write_text(json.dumps(record))
    (trainer / "optimizer.bin").write_bytes(b"\0" * 100)
    with pytest.raises(TrainingError, match=r"cannot be read .*; use an earlier checkpoint") as caught:
        train(config, resume="latest")
    assert "\n" not in str(caught.value)
    (trainer.parent / NAME["lora"]).unlink()
    with pytest.raises(TrainingError, match="cannot be read"):
        train(config, resume="latest")


def test_a_new_run_does_not_write_over_another_one(model: Path, data: Path, tmp_path: Path) -> None:
    stopped(model, data, tmp_path / "out")
    with pytest.raises(TrainingError, match=r"up to step 2; go on with --resume latest, or give another output"):
        train(settings(model, data, tmp_path / "out"))
    for resume, said in (("7", "those of the steps 2"), ("nowhere", "no checkpoint 'nowhere'")):
        with pytest.raises(TrainingError, match=said):
            train(settings(model, data, tmp_path / "out"), resume=resume)
    with pytest.raises(TrainingError, match="begin without --resume"):
        train(settings(model, data, tmp_path / "none"), resume="latest")


def test_what_a_killed_save_left_is_no_checkpoint(model: Path, data: Path, tmp_path: Path) -> None:
    stopped(model, data, tmp_path / "out")
    (tmp_path / "out" / "checkpoint-5.incomplete" / "trainer").mkdir(parents=True)
    assert train(settings(model, data, tmp_path / "out"), resume="latest").steps == 6
    assert not list((tmp_path / "out").glob("*.incomplete"))
