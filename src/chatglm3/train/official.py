"""The official kit's lora.yaml, ptuning_v2.yaml and sft.yaml as the words of `TrainConfig`.

They have the blocks data_config, training_args (those of transformers' Seq2SeqTrainingArguments) and peft_config; the
folders of the data and the model, which the kit takes on its command line, are `data_dir` and `model` here. Defaults
are the kit's, that is transformers'.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chatglm3.errors import TrainingError
from chatglm3.train.keys import require_known

_BLOCKS = ("data_config", "training_args", "peft_config")
_LENGTHS = {"max_input_length": 256, "max_output_length": 512}
_WORDS = {"data_dir": "data_dir", "model_dir": "model", "model": "model"}

# Where a key goes; a key with None changes nothing here.
_DATA = {"train_file": "train", "val_file": "validation", "test_file": "test", "num_proc": None}
_ARGUMENTS: dict[str, str | None] = {
    "output_dir": "output",
    "learning_rate": "learning_rate",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulation",
    "lr_scheduler_type": "schedule",
    "warmup_steps": "warmup_steps",
    "weight_decay": "weight_decay",
    "max_grad_norm": "clip",
    "adam_epsilon": "adam_epsilon",
    "gradient_checkpointing": "gradient_checkpointing",
    "seed": "seed",
    "save_total_limit": "keep",
    "logging_steps": "log_every",
    "deepspeed": "deepspeed",
    "per_device_eval_batch_size": "evaluation.batch_size",
    "predict_with_generate": "evaluation.generate",
    **dict.fromkeys(("dataloader_num_workers", "remove_unused_columns", "log_level", "logging_strategy")),
    **dict.fromkeys(("debug", "overwrite_output_dir", "do_train", "ddp_find_unused_parameters", "group_by_length")),
    **dict.fromkeys(("load_best_model_at_end", "logging_dir", "optim", "save_safetensors", "label_names")),
}
# Keys whose value decides what becomes of them.
_ASKED = (
    *("max_steps", "num_train_epochs", "save_strategy", "save_steps", "evaluation_strategy", "eval_strategy"),
    *("eval_steps", "do_eval", "generation_config", "use_cpu", "no_cuda", "fp16", "bf16", "report_to"),
    *("adam_beta1", "adam_beta2"),
)
_DEFAULTS: dict[str, Any] = {
    "schedule": "linear",
    "warmup_steps": 0,
    "batch_size": 8,
    "learning_rate": 5e-5,
    "keep": None,
    "seed": 42,
}
_LORA = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "target_modules": "targets"}
_PREFIX = {"num_virtual_tokens": "length", "prefix_projection": "projection"}
_PEFT_FIXED = {"task_type": "CAUSAL_LM", "inference_mode": False, "bias": "none"}
_GENERATED_ROWS = 50  # of the validation rows, as many as the kit generates for


def is_official(raw: Mapping[str, Any]) -> bool:
    """Whether a config is one of the official kit."""
    return any(block in raw for block in _BLOCKS)


def is_official_key(key: str) -> bool:
    """Whether a dotted key belongs to the official file and not to `TrainConfig`."""
    head = key.partition(".")[0]
    return head in _BLOCKS or head in _LENGTHS or head == "data_dir"


def plain_key(key: str) -> str:
    """DATA_DIR and MODEL_DIR, as the kit's usage line has them, as words of a config."""
    return _WORDS.get(key.lower(), key)


def from_official(raw: Mapping[str, Any], source: str, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The config as words of `TrainConfig`, and the keys that mean nothing here; its file is in `folder`.

    Raises `TrainingError` for a key that is unknown or a value that cannot be had.
    """
    found = {plain_key(str(key)): value for key, value in raw.items()}
    require_known(found, [*_BLOCKS, *_LENGTHS, "data_dir", "model"], source)
    arguments = _block(found, "training_args", source)
    require_known(arguments, [*_ARGUMENTS, *_ASKED], source, "training_args.")
    native: dict[str, Any] = {**_DEFAULTS, "data": _data(found, source)}
    if "model" in found:
        native["model"] = found["model"]
    ignored = [f"data_config.{key}" for key in _block(found, "data_config", source) if _DATA[key] is None]
    for key, value in arguments.items():
        word = _ARGUMENTS.get(key)
        if word is not None:
            _put(native, word, value)
        elif key in _ARGUMENTS:
            ignored.append(f"training_args.{key}")
    native |= _length(arguments)
    _training(native, arguments, source)
    native |= _method(_block(found, "peft_config", source), source)
    _find_deepspeed(native, folder)
    return native, ignored


def _data(raw: Mapping[str, Any], source: str) -> dict[str, Any]:
    block = _block(raw, "data_config", source)
    require_known(block, list(_DATA), source, "data_config.")
    folder = Path(str(raw.get("data_dir") or ""))
    files = {word: str(folder / str(block[key])) for key, word in _DATA.items() if word and block.get(key)}
    lengths = [raw.get(key, default) for key, default in _LENGTHS.items()]
    if not all(isinstance(length, int) for length in lengths):
        raise TrainingError(f"{source}: max_input_length and max_output_length must be whole numbers, not {lengths}")
    return {**files, "max_length": sum(lengths) + 1}


def _length(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """How long the run is: max_steps above 0 wins over num_train_epochs."""
    steps = arguments.get("max_steps", -1)
    if isinstance(steps, int) and steps <= 0:
        return {"epochs": arguments.get("num_train_epochs", 3)}
    return {"steps": steps}


def _training(native: dict[str, Any], arguments: Mapping[str, Any], source: str) -> None:
    """What depends on more than one key."""
    evaluation = native.setdefault("evaluation", {})
    native["save_every"] = _every(arguments, "save_strategy", "save_steps", source)
    strategy = "eval_strategy" if "eval_strategy" in arguments else "evaluation_strategy"
    every = _every(arguments, strategy, "eval_steps", source) if strategy in arguments else None
    evaluation["every"] = every
    evaluation["rows"] = _GENERATED_ROWS
    if every is None or arguments.get("do_eval") is False:
        native["data"].pop("validation", None)
    if evaluation.get("generate") and not {"validation", "test"} & set(native["data"]):
        evaluation["generate"] = False
    generation = arguments.get("generation_config") or {}
    if not isinstance(generation, Mapping):
        raise TrainingError(f"{source}: training_args.generation_config must be a block of keys")
    require_known(generation, ["max_new_tokens"], source, "training_args.generation_config.")
    evaluation |= generation
    native["adam_betas"] = [arguments.get("adam_beta1", 0.9), arguments.get("adam_beta2", 0.999)]
    if arguments.get("use_cpu") or arguments.get("no_cuda"):
        native["device"] = "cpu"
    for key, dtype in (("fp16", "float16"), ("bf16", "bfloat16")):
        if arguments.get(key):
            native["dtype"] = dtype
    native["tensorboard"] = "tensorboard" in str(arguments.get("report_to", ""))


def _every(arguments: Mapping[str, Any], strategy: str, steps: str, source: str) -> Any:
    """So many steps, or None for never."""
    chosen = arguments.get(strategy, "steps")
    if chosen in ("no", False):  # YAML reads a bare no as false
        return None
    if chosen != "steps":
        raise TrainingError(f"{source}: training_args.{strategy} must be steps or no, not {chosen!r}")
    return arguments.get(steps, 500)


def _method(peft: Mapping[str, Any], source: str) -> dict[str, Any]:
    if not peft:
        return {"method": "full"}
    kinds: dict[str, tuple[str, Mapping[str, str]]] = {"LORA": ("lora", _LORA), "PREFIX_TUNING": ("ptuning", _PREFIX)}
    kind = str(peft.get("peft_type"))
    if kind not in kinds:
        raise TrainingError(f"{source}: peft_config.peft_type {kind} is not supported; use LORA or PREFIX_TUNING")
    method, words = kinds[kind]
    require_known(peft, ["peft_type", *_PEFT_FIXED, *words], source, "peft_config.")
    for key, wanted in _PEFT_FIXED.items():
        if peft.get(key, wanted) != wanted:
            raise TrainingError(f"{source}: peft_config.{key} must be {wanted}, not {peft[key]!r}")
    settings = {word: peft[key] for key, word in words.items() if key in peft}
    return {"method": method, method: settings}


def _find_deepspeed(native: dict[str, Any], folder: Path) -> None:
    """A relative path that is not in the working folder is one beside the YAML file."""
    file = native.get("deepspeed")
    if isinstance(file, str) and not file.startswith("~") and not Path(file).exists():
        native["deepspeed"] = str(folder / file)


def _put(native: dict[str, Any], word: str, value: Any) -> None:
    block, dot, last = word.rpartition(".")
    (native.setdefault(block, {}) if dot else native)[last] = value


def _block(raw: Mapping[str, Any], name: str, source: str) -> Mapping[str, Any]:
    block = raw.get(name) or {}
    if not isinstance(block, Mapping):
        raise TrainingError(f"{source}: {name} must be a block of keys, not {block!r}")
    return block
