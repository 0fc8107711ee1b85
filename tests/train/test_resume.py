"""Runs that were stopped: they go on as if they had not been, and only as the run that they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import chatglm3
from chatglm3.errors import TrainingError
from chatglm3.train.loop import train
from train.runs import data_file, metrics, model_folder, random_rows, settings
from train.stopping import StopError, Stopper, kill_at, start, stopped

NAME = {"lora": "adapter_model.safetensors", "ptuning": "model.safetensors", "full": "model.safetensors"}


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


def test_losses_of_other_validation_rows_are_not_compared(model: Path, data: Path, tmp_path: Path) -> None:
    output, files = tmp_path / "out", {"train": str(data), "validation": str(data)}
    stopped(model, data, output, 5, data=files, keep=None)
    file = output / "checkpoint-4" / "trainer" / "state.json"
    record = json.loads(file.read_text())
    record["state"]["best_loss"] = 1e-3  # as rows of another sort may have it
    file.write_text(json.dumps(record))
    same = train(settings(model, data, output, data=files, keep=None), resume="4")
    assert (same.best_step, same.validation_loss) == (4, 1e-3)
    listener, other = Stopper(), {**files, "validation": str(data_file(tmp_path / "other.jsonl", 5, first=70))}
    result = train(settings(model, data, output, data=other), resume="4", reporter=listener)
    assert result.best_step == 6 and result.validation_loss == metrics(output, "validation_loss")[-1]
    assert "the validation rows are not those of before, so the best loss so far is forgotten" in listener.notes


def test_an_adapter_is_whole_though_the_words_beside_its_weights_were_not(
    model: Path, data: Path, tmp_path: Path
) -> None:
    stopped(model, data, tmp_path / "out", 5, save_every=4)
    (tmp_path / "out" / "checkpoint-4" / "adapter_config.json").write_text("{")
    config = settings(model, data, tmp_path / "out", save_every=4)
    train(config, resume="latest")
    done = tmp_path / "out" / "checkpoint-6"
    (done / "adapter_config.json").write_text("{")
    result = train(config, resume="latest")
    with chatglm3.load(model, adapter=result.folder) as glm:
        assert glm.chat("今天", temperature=0, max_new_tokens=3).usage.completion_tokens <= 3


def test_a_best_checkpoint_that_is_damaged_is_named(model: Path, data: Path, tmp_path: Path) -> None:
    output, files = tmp_path / "out", {"train": str(data), "validation": str(data)}
    stopped(model, data, output, 5, data=files, keep=None)
    state = output / "checkpoint-4" / "trainer" / "state.json"
    record = json.loads(state.read_text())
    record["state"] |= {"best_step": 2, "best_loss": 1e-3}
    state.write_text(json.dumps(record))
    weights = output / "checkpoint-2" / NAME["lora"]
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(chatglm3.ChatGLMError, match=f"checkpoint-2/{NAME['lora']} cannot be read"):
        train(settings(model, data, output, data=files, keep=None), resume="4")
    assert not (output / "adapter").exists()


def test_another_version_and_damaged_files_are_refused(model: Path, data: Path, tmp_path: Path) -> None:
    stopped(model, data, tmp_path / "out")
    config, trainer = settings(model, data, tmp_path / "out"), tmp_path / "out" / "checkpoint-2" / "trainer"
    record = json.loads((trainer / "state.json").read_text())
    for text, said in (
        (json.dumps({**record, "version": 99}), "written by another version of chatglm3 (format 99, here 2)"),
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
