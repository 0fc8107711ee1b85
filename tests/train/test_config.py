"""Configs: words and overrides, the official files, and one line for what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from chatglm3.errors import TrainingError
from chatglm3.train.config import make_config, read_config, write_config
from golden import OFFICIAL

BASE: dict[str, Any] = {"model": "nano", "data": {"train": "train.jsonl"}, "output": "out"}
# The official files as their authors wrote them, but for comments.
TRAINING = """\
max_input_length: 256
max_output_length: 512
data_config: {train_file: train.json, val_file: dev.json, test_file: dev.json, num_proc: 16}
training_args:
  output_dir: ./output
  max_steps: 3000
  learning_rate: 5e-5
  per_device_train_batch_size: 4
  dataloader_num_workers: 16
  remove_unused_columns: false
  save_strategy: steps
  save_steps: 500
  log_level: info
  logging_strategy: steps
  logging_steps: 10
  per_device_eval_batch_size: 16
  evaluation_strategy: steps
  eval_steps: 500
  predict_with_generate: true
  generation_config: {max_new_tokens: 512}
"""
LORA = TRAINING + (
    "  use_cpu: false\npeft_config: {peft_type: LORA, task_type: CAUSAL_LM, r: 8, lora_alpha: 32, lora_dropout: 0.1}\n"
)
PTUNING = TRAINING + "peft_config: {peft_type: PREFIX_TUNING, task_type: CAUSAL_LM, num_virtual_tokens: 128}\n"
SFT = TRAINING + "  deepspeed: ds_zero_3.json\n"


def write(folder: Path, text: str | dict[str, Any]) -> Path:
    file = folder / "config.yaml"
    file.write_text(text if isinstance(text, str) else yaml.safe_dump(text), encoding="utf-8")
    return file


def test_the_defaults_are_the_official_ones_of_lora() -> None:
    config = make_config(BASE, "test")
    assert (config.lora.targets, config.lora.rank, config.lora.alpha, config.lora.dropout) == (
        ("query_key_value",),
        8,
        32,
        0.1,
    )
    assert (config.epochs, config.steps, config.rate) == (3, None, 1e-4)
    assert make_config({**BASE, "method": "ptuning"}, "test").rate == 2e-2


def test_words_of_the_command_line_change_the_file(tmp_path: Path) -> None:
    words = ["lora.rank=16", "lora.targets=[dense, query_key_value]", "steps=7", "learning_rate=5e-5", "clip=null"]
    config, ignored = read_config(write(tmp_path, BASE), [*words, "data.validation=a: b.jsonl"])
    assert (config.lora.rank, config.lora.targets) == (16, ("dense", "query_key_value"))
    assert (config.steps, config.epochs, config.learning_rate, config.clip) == (7, None, 5e-5, None)
    assert ignored == ()
    assert config.data.validation == Path("a: b.jsonl")


def test_a_config_that_is_written_is_read_again(tmp_path: Path) -> None:
    data = {**BASE["data"], "validation": "val.jsonl"}
    config = make_config({**BASE, "steps": 5, "evaluation": {"patience": 2}, "data": data}, "test")
    write_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == (config, ())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learning_rte": 1}, "unknown key 'learning_rte'; did you mean learning_rate?"),
        ({"lora": {"rnak": 1}}, "unknown key 'lora.rnak'; did you mean lora.rank?"),
        ({"data": {"trian": "x"}}, "did you mean data.train?"),
        ({"zzz": 1}, "unknown key 'zzz'; known: model, data"),
        ({"learning_rate": 0}, "learning_rate: input should be greater than 0, not 0"),
        ({"learning_rate": float("nan")}, "learning_rate: input should be"),
        ({"learning_rate": float("inf")}, "learning_rate: input should be a finite number"),
        ({"lora": {"targets": ["qkv"]}}, "lora.targets.0: input should be 'query_key_value', 'dense'"),
        ({"lora": {"targets": []}}, "lora.targets is empty"),
        ({"lora": {"rank": 0}}, "lora.rank: input should be greater than or equal to 1"),
        ({"method": "magic"}, "method: input should be 'lora', 'ptuning' or 'full', not 'magic'"),
        ({"steps": 3, "epochs": 2}, "steps and epochs exclude each other"),
        ({"method": "full", "quantize": 4}, "cannot be done on quantised ones"),
        ({"optimizer": "muon"}, "optimizer=muon is for method=full; use adamw"),
        ({"quantize": 3}, "quantize: input should be 8 or 4, not 3"),
        ({"evaluation": {"patience": 2}}, "evaluation.patience needs data.validation"),
        ({"evaluation": {"generate": True}}, "evaluation.generate needs"),
        ({"data": "train.jsonl"}, "data: input should be a block of keys, not 'train.jsonl'"),
        ({"model": None}, "model: input should be text, not null"),
        ({"learning_rate": 1e300}, "learning_rate: input should be less than or equal to 1000, not 1e+300"),
        ({"weight_decay": 1e300}, "weight_decay: input should be less than"),
        ({"lora": {"alpha": 1e300}}, "lora.alpha: input should be less than"),
        ({"steps": 10**400}, "steps: input should be less than"),
        ({"batch_size": True}, "batch_size: input should be a number, not true"),
        ({"learning_rate": True}, "learning_rate: input should be a number, not true"),
        ({"batch_size": 1.5}, "batch_size: input should be a whole number, not 1.5"),
        ({"epochs": "many"}, "epochs: input should be a number, not 'many'"),
        ({"tensorboard": "perhaps"}, "tensorboard: input should be true or false, not 'perhaps'"),
        ({"adam_betas": 0.9}, "adam_betas: input should be a list, not 0.9"),
        ({"adam_betas": [0.9]}, "adam_betas.1 is missing"),
        ({"adam_betas": [0.9, 0.9, 0.9]}, "adam_betas: input has too many values"),
        ({"lora": {"targets": 3}}, "lora.targets: input should be a list, not 3"),
        ({"output": 2024}, "output: input should be a path, not 2024"),
        ({"output": "~nobody-of-this-name/out"}, "output: input begins with the home of nobody here"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    file = write(tmp_path, {**BASE, **changes})
    with pytest.raises(TrainingError) as caught:
        read_config(file)
    assert str(caught.value).startswith(f"{file}: ") and said in str(caught.value), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "is not YAML"),
        ("[" * 5000, "is not YAML"),
        ("- a\n", "one line for each key"),
        ("", "one line for each key"),
        ("data: {}", "model is missing"),
        ("model: nano\noutput: a\nmodel: b\n", "model is given twice, again in line 3; leave one of them"),
        ("model: nano\noutput: a\nlora: {rank: 4, rank: 8}\n", "rank is given twice, again in line 3"),
    ],
)
def test_files_that_are_no_config(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=said) as caught:
        read_config(write(tmp_path, text))
    assert "\n" not in str(caught.value)
    with pytest.raises(TrainingError, match="chatglm3 train init"):
        read_config(tmp_path / "nothing.yaml")


def test_the_official_lora_file_runs_as_it_is(tmp_path: Path) -> None:
    config, ignored = read_config(write(tmp_path, LORA), ["data_dir=rows", "model=nano"])
    assert config.data.train == Path("rows/train.json") and config.data.validation == Path("rows/dev.json")
    assert config.data.max_length == 769 and not config.data.train_on_observation
    assert (config.method, config.lora.rank, config.lora.alpha, config.lora.dropout) == ("lora", 8, 32, 0.1)
    assert (config.steps, config.learning_rate, config.batch_size) == (3000, 5e-5, 4)
    assert (config.schedule, config.warmup_steps, config.keep, config.device) == ("linear", 0, None, "auto")
    assert (config.save_every, config.log_every, config.evaluation.every) == (500, 10, 500)
    assert (config.evaluation.generate, config.evaluation.max_new_tokens, config.evaluation.batch_size) == (
        True,
        512,
        16,
    )
    assert ignored == (
        "data_config.num_proc",
        "training_args.dataloader_num_workers",
        "training_args.remove_unused_columns",
        "training_args.log_level",
        "training_args.logging_strategy",
    )


def test_the_other_official_files(tmp_path: Path) -> None:
    config, _ = read_config(write(tmp_path, PTUNING), ["DATA_DIR=rows", "MODEL_DIR=nano"])
    assert (config.method, config.ptuning.length, config.ptuning.projection) == ("ptuning", 128, False)
    assert (config.model, config.data.train) == ("nano", Path("rows/train.json"))
    config, _ = read_config(write(tmp_path, SFT), ["model=nano"])
    assert (config.method, config.deepspeed) == ("full", tmp_path / "ds_zero_3.json")


@pytest.mark.skipif(not (OFFICIAL / "finetune").is_dir(), reason="the official files are absent")
@pytest.mark.parametrize("name", ["lora", "ptuning_v2", "sft"])
def test_the_files_above_are_those_of_the_official_kit(name: str, tmp_path: Path) -> None:
    ours = {"lora": LORA, "ptuning_v2": PTUNING, "sft": SFT}[name]
    official = OFFICIAL / "finetune" / f"{name}.yaml"
    words = ["model=nano", "deepspeed=null"]
    assert read_config(official, words) == read_config(write(tmp_path, ours), words)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["training_args.max_steps=5", "training_args.bf16=true"], {"steps": 5, "dtype": "bfloat16"}),
        (["steps=5", "lora.rank=4"], {"steps": 5}),
        (["training_args.max_steps=-1", "training_args.num_train_epochs=2"], {"steps": None, "epochs": 2}),
        (["training_args.save_strategy=no"], {"save_every": None}),
        (["training_args.use_cpu=true"], {"device": "cpu"}),
        (["training_args.gradient_accumulation_steps=8", "training_args.warmup_steps=3"], {"accumulation": 8}),
        (["training_args.report_to=tensorboard", "training_args.save_total_limit=1"], {"tensorboard": True, "keep": 1}),
        (["training_args.max_grad_norm=0.5", "training_args.seed=1"], {"clip": 0.5, "seed": 1}),
    ],
)
def test_keys_of_the_official_kit(words: list[str], found: dict[str, Any], tmp_path: Path) -> None:
    config, _ = read_config(write(tmp_path, LORA), ["model=nano", *words])
    assert {name: getattr(config, name) for name in found} == found


def test_an_official_file_without_validation_measures_nothing(tmp_path: Path) -> None:
    for words in (["training_args.evaluation_strategy=no"], ["training_args.do_eval=false"], ["data_config.val_file="]):
        config, _ = read_config(write(tmp_path, LORA), ["model=nano", *words])
        assert config.data.validation is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["training_args.max_step=5"], "unknown key 'training_args.max_step'; did you mean training_args.max_steps?"),
        (["peft_config.lora_dropuot=0"], "did you mean peft_config.lora_dropout?"),
        (["data_config.trainfile=x"], "did you mean data_config.train_file?"),
        (["peft_config.peft_type=IA3"], "peft_type IA3 is not supported; use LORA or PREFIX_TUNING"),
        (["peft_config.bias=all"], "peft_config.bias must be none, not 'all'"),
        (["peft_config.target_modules=qkv"], "lora.targets.0: input should be"),
        (["training_args.save_strategy=epoch"], "must be steps or no, not 'epoch'"),
        (["max_input_length=many"], "must be whole numbers"),
        (["training_args.generation_config.top_k=1"], "unknown key 'training_args.generation_config.top_k'"),
        (["training_args=3"], "training_args must be a block of keys"),
    ],
)
def test_official_keys_that_are_wrong(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        read_config(write(tmp_path, LORA), ["model=nano", *words])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_an_official_file_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match="MODEL_DIR is missing; name the model, as in MODEL_DIR=zai-org/chatglm3-6b"
    ):
        read_config(write(tmp_path, LORA))


def test_words_of_the_command_line_are_named_where_they_may_be_wrong(tmp_path: Path) -> None:
    file = write(tmp_path, BASE)
    with pytest.raises(TrainingError) as caught:
        read_config(file, ["steps=-1"])
    assert str(caught.value) == f"{file} with steps=-1: steps: input should be greater than or equal to 1, not -1"
    with pytest.raises(TrainingError, match=r"with training_args.max_step=5: unknown key"):
        read_config(write(tmp_path, LORA), ["training_args.max_step=5"])


def test_one_layer_needs_no_list_and_a_date_is_a_name(tmp_path: Path) -> None:
    config, _ = read_config(write(tmp_path, BASE), ["lora.targets=dense", "data.train=2024-01-31"])
    assert (config.lora.targets, config.data.train) == (("dense",), Path("2024-01-31"))
    text = "model: nano\noutput: out\ndata: {train: 2024-01-31}\n"
    assert read_config(write(tmp_path, text))[0].data.train == Path("2024-01-31")


def test_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    words = {"model": "~/model", "output": "~/out", "data": {"train": "~/a.jsonl"}, "deepspeed": "~/ds.json"}
    config, _ = read_config(write(tmp_path, words))
    home = tmp_path / "home"
    assert (config.model, config.output, config.data.train) == (str(home / "model"), home / "out", home / "a.jsonl")
    assert config.deepspeed == home / "ds.json"
    words_of_the_kit = ["DATA_DIR=~/rows", "MODEL_DIR=~/model", "training_args.deepspeed=~/ds.json"]
    config, _ = read_config(write(tmp_path, LORA), words_of_the_kit)
    assert (config.model, config.data.train) == (str(home / "model"), home / "rows" / "train.json")
    assert config.deepspeed == home / "ds.json"
