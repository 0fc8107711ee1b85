"""Two processes that accelerate launches, against one with the same global batch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from chatglm3.errors import TrainingError
from chatglm3.train.config import TrainConfig, write_config
from chatglm3.train.loop import train
from train.runs import data_file, metrics, model_folder, settings

COMMON: dict[str, Any] = {"lora": {"dropout": 0.0}, "steps": 5, "save_every": 3, "evaluation": {"every": 5}}


def launch(folder: Path, config: TrainConfig, *words: str) -> str:
    """Run two processes to the end; what they say on standard error."""
    file = folder / "config.yaml"
    write_config(config, file)
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch"]
    # accelerate starts several processes on this machine for --multi_gpu only; the config says that they use the CPU.
    how = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--num_cpu_threads_per_process", "1"]
    how += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    command = [*launcher, *how, "--module", "chatglm3", "train", str(file), *words]
    said = run(command, {"HF_HOME": str(folder / "home")})
    assert "arning" not in said
    return said


def run(command: list[str], settings: dict[str, str]) -> str:
    """Run a launcher to the end; what the processes say on standard error."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, env={**os.environ, **settings})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done after 5 steps") == 1
    return done.stderr


def test_two_processes_give_the_losses_of_one_and_go_on(tiny_tokenizer_dir: Path, tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model", tiny_tokenizer_dir)
    data = data_file(tmp_path / "train.jsonl", 17)
    files = {"train": str(data), "validation": str(data_file(tmp_path / "val.jsonl", 5, first=40))}
    changes = {"data": files, "accumulation": 2, **COMMON}
    one = train(settings(model, data, tmp_path / "one", batch_size=4, **changes)).folder.parent
    two = tmp_path / "two"
    config = settings(model, data, two, batch_size=2, **changes)
    assert "5 steps of 8 rows, 2.4 epochs; float32 on 2 x cpu" in launch(tmp_path, config)
    for name in ("loss", "validation_loss", "gradient_norm", "learning_rate"):
        assert metrics(two, name) == pytest.approx(metrics(one, name), rel=2e-5)
    weights = [load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (one, two)]
    assert all(weights[0][name].allclose(weights[1][name], atol=2e-5) for name in weights[0])
    with pytest.raises(TrainingError, match=r"another number of processes \(2, here 1\)"):
        train(config, resume="latest")
    finished = (two / "adapter" / "adapter_model.safetensors").read_bytes()
    assert "going on from" in launch(tmp_path, config, "--resume", "3")
    assert (two / "adapter" / "adapter_model.safetensors").read_bytes() == finished


@pytest.mark.parametrize("method", ["lora", "full"])
def test_weights_spread_over_two_processes_train_as_whole_ones(
    method: str, tiny_tokenizer_dir: Path, tmp_path: Path
) -> None:
    """FSDP2: the losses of one process, checkpoints to go on from, and a folder that can be used."""
    model = model_folder(tmp_path / "model", tiny_tokenizer_dir)
    data = data_file(tmp_path / "train.jsonl", 17)
    changes = {"data": {"train": str(data), "validation": str(data)}, "method": method, "learning_rate": 1e-4, **COMMON}
    one = train(settings(model, data, tmp_path / "one", batch_size=8, **changes)).folder
    two = tmp_path / "two"
    write_config(settings(model, data, two, batch_size=4, **changes), tmp_path / "config.yaml")
    sharding = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_TRANSFORMER_CLS_TO_WRAP": "Block",
        "OMP_NUM_THREADS": "1",
    }
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*launcher, str(Path(__file__).with_name("sharded.py")), "train", str(tmp_path / "config.yaml")]
    assert "5 steps of 8 rows" in run(command, sharding)
    for name in ("loss", "validation_loss"):
        assert metrics(two, name) == pytest.approx(metrics(one.parent, name), rel=2e-5)
    file = "adapter_model.safetensors" if method == "lora" else "model.safetensors"
    whole, spread = load_file(one / file), load_file(two / one.name / file)
    assert whole.keys() == spread.keys()
    names = [name for name in whole if not name.endswith("bias")]  # keys' biases change nothing: they follow rounding
    assert all(spread[name].allclose(whole[name], atol=2e-6) for name in names)
    assert "going on from" in run([*command, "--resume", "3"], sharding)
    again = load_file(two / one.name / file)
    assert all(again[name].allclose(spread[name], atol=2e-6) for name in names)
