"""`chatglm3 train`: runs, refusals, and the config that `train init` writes."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from shlex import quote
from typing import Any

import pytest
import yaml

from chatglm3.cli.train_init import init
from chatglm3.train.config import make_config, read_config
from cli.runner import Result

Cli = Callable[..., Result]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    messages = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "今天天气很好。"}]
    file = tmp_path / "rows.jsonl"
    file.write_text((json.dumps({"conversations": messages}, ensure_ascii=False) + "\n") * 6, encoding="utf-8")
    return file


@pytest.fixture
def config(model_dir: Path, rows: Path, tmp_path: Path) -> Path:
    words: dict[str, Any] = {
        "model": str(model_dir),
        "data": {"train": str(rows)},
        "output": str(tmp_path / "out"),
        "steps": 3,
        "batch_size": 2,
        "log_every": 1,
        "device": "cpu",
    }
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(words), encoding="utf-8")
    return file


def test_a_run_and_how_its_result_is_used(cli: Cli, config: Path, model_dir: Path, tmp_path: Path) -> None:
    result = cli("train", config, "lora.rank=2", "learning_rate=0.01")
    assert result.status == 0, result.err
    assert result.out.splitlines()[0].startswith("done after 3 steps: loss ")
    assert result.out.splitlines()[1] == f"chatglm3 chat --model {model_dir} --adapter {tmp_path}/out/adapter"
    assert "step 3/3: loss" in result.err and "6 chat rows" in result.err and "memory: about" in result.err
    answer = cli("chat", "你好", "--model", model_dir, "--adapter", tmp_path / "out" / "adapter", "--temperature", "0")
    assert answer.status == 0 and answer.out.strip()
    again = cli("train", config)
    assert again.status == 1 and "--resume latest" in again.err and again.err.count("\n") == 1
    changed = cli("train", "run", config, "--resume", "latest")
    assert changed.status == 1 and "lora.rank=2, not 8" in changed.err


def test_an_official_file_names_what_means_nothing(cli: Cli, model_dir: Path, rows: Path, tmp_path: Path) -> None:
    file = tmp_path / "lora.yaml"
    file.write_text(
        "data_config: {train_file: rows.jsonl, num_proc: 16}\n"
        f"training_args: {{output_dir: {tmp_path / 'out'}, max_steps: 2, dataloader_num_workers: 16, use_cpu: true,\n"
        "  save_strategy: steps, save_steps: 500, logging_steps: 1, predict_with_generate: true,\n"
        "  generation_config: {max_new_tokens: 512}, deepspeed: ds_zero_3.json}\n"
        "peft_config: {peft_type: LORA, task_type: CAUSAL_LM, r: 8, lora_alpha: 32, lora_dropout: 0.1}\n",
        encoding="utf-8",
    )
    result = cli("train", file, f"DATA_DIR={tmp_path}", f"MODEL_DIR={model_dir}")
    assert result.status == 0, result.err
    first = result.err.splitlines()[0]
    assert "without meaning here: data_config.num_proc, training_args.dataloader_num_workers" in first
    assert "ds_zero_3.json is not used" in result.err
    assert (tmp_path / "out" / "checkpoint-2").is_dir()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ((), 2, "config"),
        (("{config}", "lora.rank"), 2, "'lora.rank' is not key=value"),
        (("{config}", "--resum", "x"), 2, "--resume"),
        (("{config}", "learning_rte=1"), 1, "did you mean learning_rate?"),
        (("{config}", "learning_rate=0"), 1, "learning_rate: input should be greater than 0"),
        (("{config}", "learning_rate=.nan"), 1, "learning_rate: input should be"),
        (("{config}", "data.train=nowhere.jsonl"), 1, "nowhere.jsonl"),
        (("nowhere.yaml",), 1, "chatglm3 train init"),
    ],
)
def test_refusals_are_one_line(cli: Cli, config: Path, arguments: tuple[str, ...], status: int, words: str) -> None:
    result = cli("train", *(str(config) if argument == "{config}" else argument for argument in arguments))
    assert (result.status, result.out) == (status, "")
    assert words in result.err and result.err.startswith("error: ") and result.err.count("\n") == 1


def test_help_names_the_three_commands(cli: Cli) -> None:
    result = cli("train", "--help")
    assert result.status == 0 and all(word in result.out for word in ("run", "check", "init"))
    assert "--resume" in cli("train", "run", "--help").out
    assert "train" in cli("--help").out
    assert cli("train", "check").status == 2


@pytest.mark.parametrize("method", ["lora", "ptuning", "full"])
def test_init_writes_a_config_that_runs(method: str, cli: Cli, model_dir: Path, rows: Path, tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    answers = f"{model_dir}\n{rows}\n{rows}\n{method}\n{tmp_path / 'out'}\n"
    result = cli("train", "init", file, stdin=answers.encode())
    assert result.status == 0 and "Model to fine-tune" in result.out
    assert result.out.rstrip().endswith(f"chatglm3 train check {rows} --model {model_dir}; chatglm3 train {file}")
    found, _ = read_config(file)
    words = {"model": str(model_dir), "output": tmp_path / "out", "data": {"train": rows, "validation": rows}}
    assert found == make_config({**words, "method": method, "evaluation": {"every": 500}}, "the defaults")
    text = file.read_text(encoding="utf-8")
    assert text.count("#") > 15 and max(map(len, text.splitlines())) <= 400
    done = cli("train", file, "epochs=null", "steps=1", "device=cpu", "evaluation.every=1")
    assert done.status == 0, done.err


def test_init_takes_options_and_refuses_to_write_over_a_file(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "it's.yaml"
    options = ("--model", "nano", "--train", "my: rows.jsonl", "--validation", "-", "--method", "lora", "--output", "o")
    written = cli("train", "init", file, *options)
    assert written.status == 0 and written.err == "my: rows.jsonl is not there yet\n"
    run, check = f"chatglm3 train {quote(str(file))}", "chatglm3 train check 'my: rows.jsonl' --model nano"
    assert f"{check}; {run}" in written.out
    text = file.read_text(encoding="utf-8")
    assert f"# A training run: {run} [" in text and f"first: {check}\n" in text
    found, _ = read_config(file)
    assert (found.data.train, found.data.validation, found.rate) == (Path("my: rows.jsonl"), None, 1e-4)
    for asked in (options, ()):  # without a question
        again = cli("train", "init", file, *asked)
        assert (again.status, again.out) == (1, "") and "exists; give another name" in again.err
    nowhere = cli("train", "init", tmp_path / "nowhere" / "a.yaml")
    assert (nowhere.status, nowhere.out) == (1, "") and "nowhere is not a folder" in nowhere.err
    unknown = cli("train", "init", tmp_path / "c.yaml", "--model", "anywhere", *options[2:])
    assert unknown.status == 0 and "anywhere is no folder here, and not the name of a model" in unknown.err
    wrong = cli("train", "init", tmp_path / "b.yaml", *options[:-4], "--method", "magic", "--output", "o")
    assert wrong.status == 2 and "use lora, ptuning, full" in wrong.err
    assert init.__doc__


def test_the_end_of_the_answers_ends_the_line(cli: Cli, tmp_path: Path) -> None:
    result = cli("train", "init", tmp_path / "a.yaml", stdin=b"nano\n")
    assert result.status == 130 and result.out.endswith("[train.jsonl]: \n") and not (tmp_path / "a.yaml").exists()


def test_a_command_can_be_copied_into_a_shell(cli: Cli, config: Path, model_dir: Path, tmp_path: Path) -> None:
    result = cli("train", config, f"output={tmp_path}/my out")
    assert result.status == 0, result.err
    assert shlex.split(result.out.splitlines()[1])[2:] == [
        *("--model", str(model_dir), "--adapter", f"{tmp_path}/my out/adapter")
    ]


def test_ctrl_c_before_the_first_checkpoint_promises_none(config: Path) -> None:
    command = [sys.executable, "-m", "chatglm3", "train", str(config), "steps=2000", "save_every=null"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        next(line for line in process.stderr if line.startswith("step 1/"))
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 130
    assert rest.endswith("stopped; begin again with the same command, since there is no checkpoint yet\n")


def test_ctrl_c_stops_a_run_that_goes_on_later(config: Path, tmp_path: Path) -> None:
    words = ["train", str(config), "steps=2000", "save_every=1"]
    command = [sys.executable, "-m", "chatglm3", *words]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = next(line for line in process.stderr if line.startswith("step 3/"))
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(timeout=60) == 130
    assert "tokens/s" in said and "go on with --resume latest, since checkpoint-" in rest and "Traceback" not in rest
    assert list((tmp_path / "out").glob("checkpoint-*/trainer/state.json"))
