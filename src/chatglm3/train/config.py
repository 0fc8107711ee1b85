"""What a training run is: a YAML file, checked, with `key=value` words on top of it.

The words are those of `TrainConfig`; a word in a block has a dot (`lora.rank=16`). The three files of the official kit
are understood as well (`official.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml  # type: ignore[import-untyped]
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from chatglm3.errors import TrainingError
from chatglm3.train.fields import (
    Count,
    Decay,
    File,
    Length,
    ModelName,
    Positive,
    Rate,
    Seed,
    Share,
    Targets,
    Whole,
    describe,
)
from chatglm3.train.keys import parse_pair, parse_yaml, require_known, with_pairs
from chatglm3.train.official import from_official, is_official, is_official_key, plain_key

RATES = {"lora": 1e-4, "ptuning": 2e-2, "full": 2e-5}
"""The learning rate of a method if the file names none."""


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Block):
    """Which rows are learned. Files are JSON, JSONL, CSV, TSV or Parquet."""

    train: File | None = None
    """May be left out where the rows are handed to `train`."""
    validation: File | None = None
    test: File | None = None
    kind: Literal["chat", "base"] | None = None
    """What the rows are; None: what they look like."""
    max_length: Length = 1024
    """Most tokens of a row."""
    encoding: str | None = None
    """Of all files that are text; None: found out."""
    train_on_observation: bool = False
    """Also learn the results of tools, as the official kit does."""


class LoraSettings(_Block):
    """LoRA (Hu et al., 2021); the defaults are the official ones."""

    targets: Targets = ("query_key_value",)
    rank: Count = 8
    alpha: Positive = 32.0
    dropout: Share = 0.1


class PtuningSettings(_Block):
    """P-Tuning v2 (Liu et al., 2021): so many learned keys and values, made by a small network with `projection`."""

    length: Count = 128
    projection: bool = False


class EvaluationSettings(_Block):
    """What is measured on the validation rows while the model learns."""

    every: Count | None = None
    """Steps between two evaluations; None: as often as checkpoints are saved. There is one at the end in any case."""
    patience: Count | None = None
    """Stop after so many evaluations without a better validation loss."""
    batch_size: Count = 8
    generate: bool = False
    """Also generate answers, and compare them with those of the rows."""
    rows: Count | None = None
    """Generate the first so many answers only."""
    max_new_tokens: Count = 512


class TrainConfig(_Block):
    """A training run. `steps` or `epochs` says how long it is (without either: three epochs)."""

    model: ModelName
    data: DataConfig = DataConfig()
    output: File
    method: Literal["lora", "ptuning", "full"] = "lora"
    lora: LoraSettings = LoraSettings()
    ptuning: PtuningSettings = PtuningSettings()
    steps: Count | None = None
    epochs: Positive | None = None
    batch_size: Count = 4
    """Rows of one forward pass on one device, on average: they are dealt out by their tokens."""
    accumulation: Count = 1
    """Forward passes of each device in a step."""
    learning_rate: Rate | None = None
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup_steps: Whole = 10
    optimizer: Literal["adamw", "muon"] = "adamw"
    """Muon is for the matrices of the blocks when all weights are trained."""
    weight_decay: Decay = 0.0
    clip: Positive | None = 1.0
    """Longest gradient; None: as it comes."""
    adam_betas: tuple[Share, Share] = (0.9, 0.999)
    adam_epsilon: Positive = 1e-8
    hidden_dropout: Share = 0.0
    """Of what attention and MLP add to the stream, as in the official network; LoRA has a dropout of its own."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantize: Literal[8, 4] | None = None
    gradient_checkpointing: bool = False
    device: Literal["auto", "cpu"] = "auto"
    deepspeed: File | None = None
    """A DeepSpeed configuration (JSON)."""
    seed: Seed = 0
    save_every: Count | None = 500
    """Steps between two checkpoints; None: one at the end only."""
    keep: Count | None = 2
    """Newest checkpoints that stay, besides the best; None: all."""
    log_every: Count = 10
    tensorboard: bool = False
    evaluation: EvaluationSettings = EvaluationSettings()

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        filled = dict(raw)
        if filled.get("steps") is None and filled.get("epochs") is None:
            filled["epochs"] = 3
        if filled.get("learning_rate") is None:
            filled["learning_rate"] = RATES.get(str(filled.get("method", "lora")))
        return filled

    @model_validator(mode="after")
    def _check(self) -> TrainConfig:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps and epochs exclude each other; give one of them")
        if self.quantize is not None and self.method == "full":
            raise ValueError("full fine-tuning changes all weights and cannot be done on quantised ones; use lora")
        if self.optimizer == "muon" and self.method != "full":
            raise ValueError("optimizer=muon is for method=full; use adamw")
        if not self.lora.targets:
            raise ValueError("lora.targets is empty; name at least one layer")
        if self.evaluation.generate and self.data.validation is None and self.data.test is None:
            raise ValueError("evaluation.generate needs data.validation or data.test")
        if self.evaluation.patience is not None and self.data.validation is None:
            raise ValueError("evaluation.patience needs data.validation")
        return self

    @property
    def rate(self) -> float:
        """The highest learning rate."""
        return RATES[self.method] if self.learning_rate is None else self.learning_rate


def read_config(path: Path, words: Sequence[str] = ()) -> tuple[TrainConfig, tuple[str, ...]]:
    """The run that a YAML file and `key=value` words describe, and the keys of it that mean nothing here.

    Raises `TrainingError` in one line for what is not YAML, unknown (with the nearest known word) or out of range.
    """
    raw = _read(path)
    pairs = [(plain_key(key), value) for key, value in map(parse_pair, words)]
    source = f"{path} with {' '.join(words)}" if words else str(path)
    if not is_official(raw):
        return make_config(with_pairs(raw, pairs), source), ()
    official = with_pairs(raw, [p for p in pairs if is_official_key(p[0])])
    native, ignored = from_official(official, source, path.parent)
    native = with_pairs(native, [p for p in pairs if not is_official_key(p[0])])
    if "model" not in native:
        raise TrainingError(f"{source}: MODEL_DIR is missing; name the model, as in MODEL_DIR=zai-org/chatglm3-6b")
    return make_config(native, source), tuple(ignored)


def make_config(raw: Mapping[str, Any], source: str) -> TrainConfig:
    """`raw`, checked. `source` names it in the `TrainingError`."""
    _refuse_unknown(raw, TrainConfig, source, "")
    try:
        return TrainConfig.model_validate(raw)
    except ValidationError as error:
        raise TrainingError(f"{source}: {describe(error)}") from None


def write_config(config: TrainConfig, path: Path) -> None:
    """Write all of `config` as YAML, which `read_config` reads."""
    text = yaml.safe_dump(config.model_dump(mode="json"), allow_unicode=True, sort_keys=False)
    path.write_text(text, encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise TrainingError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise TrainingError(f"{path}: {error.strerror}; `chatglm3 train init` writes a config") from None
    if not isinstance(raw, dict):
        raise TrainingError(f"{path}: a config has one line for each key, as in `model: nano`")
    return raw


def _refuse_unknown(raw: Mapping[str, Any], block: type[BaseModel], source: str, prefix: str) -> None:
    require_known(raw, tuple(block.model_fields), source, prefix)
    for key, value in raw.items():
        inner = block.model_fields[key].annotation
        if isinstance(value, Mapping) and isinstance(inner, type) and issubclass(inner, BaseModel):
            _refuse_unknown(value, inner, source, f"{prefix}{key}.")
