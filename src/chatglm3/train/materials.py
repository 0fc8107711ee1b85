"""What a run begins with, all but the weights: the shape of the model, its tokenizer, the rows and their order."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass
from pathlib import Path

import torch

from chatglm3.capabilities import capabilities_of
from chatglm3.errors import TrainingError
from chatglm3.model.config import ModelConfig
from chatglm3.model.hub import resolve
from chatglm3.tokenizer import Tokenizer
from chatglm3.train.batches import Plan, weight_of
from chatglm3.train.config import TrainConfig
from chatglm3.train.data import IGNORED
from chatglm3.train.dataset import Dataset, load_dataset, other_kind
from chatglm3.train.identity import Identity


@dataclass(frozen=True)
class Materials:
    """The base model's folder and shape, its tokenizer, and the rows of the config's files."""

    folder: Path
    model: ModelConfig
    tokenizer: Tokenizer
    train: Dataset
    validation: Dataset | None
    test: Dataset | None


def read_materials(config: TrainConfig, rows: Dataset | None = None) -> Materials:
    """Read all of it, but for rows to train on that are there already.

    Raises `TrainingError` if it does not fit together, and what reading data and models raises.
    """
    folder = resolve(config.model)
    model = ModelConfig.from_pretrained(folder)
    longest = config.data.max_length
    if longest > model.seq_length:
        raise TrainingError(f"data.max_length={longest} is more than the {model.seq_length} tokens of {config.model}")
    tokenizer = Tokenizer.from_pretrained(folder)
    if rows is None:
        if config.data.train is None:
            raise TrainingError("data.train is missing; name the file of the rows to learn")
        rows = _read(config, config.data.train, tokenizer)
    else:
        _require_sound(rows, model)
    _require_fit(config, rows, model)
    others = [
        None if file is None else _read(config, file, tokenizer, rows)
        for file in (config.data.validation, config.data.test)
    ]
    return Materials(folder, model, tokenizer, rows, *others)


def make_plan(config: TrainConfig, data: Dataset, processes: int) -> Plan:
    """The order in which the run goes through `data`."""
    return Plan(
        tuple(len(row.input_ids) for row in data.rows),
        config.batch_size,
        config.accumulation,
        processes,
        config.seed,
        config.steps,
        config.epochs or 1.0,
    )


def make_identity(
    config: TrainConfig, materials: Materials, dtype: torch.dtype, processes: int, model: str
) -> Identity:
    """What must be the same when the run goes on; `model` is the fingerprint of the base's weights."""
    train, validation = _digest(materials.train), _digest(materials.validation)
    name = str(dtype).removeprefix("torch.")
    return Identity(config.model_dump(mode="json"), name, train, processes, model, validation)


def _digest(data: Dataset | None) -> str:
    digest = hashlib.sha256()
    for row in data.rows if data is not None else ():
        digest.update(array("i", [len(row.input_ids), *row.input_ids, *row.labels]).tobytes())
        if row.weights is not None or row.soft:
            digest.update(repr((row.weights, row.soft)).encode())
    return digest.hexdigest()[:32]


def _read(config: TrainConfig, file: Path, tokenizer: Tokenizer, like: Dataset | None = None) -> Dataset:
    data = config.data
    return load_dataset(
        file,
        tokenizer,
        kind=data.kind if like is None else like.kind,
        max_length=data.max_length,
        train_on_observation=data.train_on_observation,
        encoding=data.encoding,
    )


def _require_sound(data: Dataset, model: ModelConfig) -> None:
    """Rows that no file was read for are what the network and the loss can take."""
    if not data.rows:
        raise TrainingError("there are no rows to learn")
    for number, row in zip(data.numbers, data.rows, strict=True):
        sizes = {len(row.input_ids), len(row.labels), len(row.labels if row.weights is None else row.weights)}
        if len(sizes) > 1 or not 2 <= len(row.input_ids) <= model.seq_length:
            raise TrainingError(
                f"row {number}: ids, labels and weights must be equally many, from 2 to {model.seq_length}"
            )
        ids = {*row.input_ids, *(label for label in row.labels if label != IGNORED), *(t.other for t in row.soft)}
        if not 0 <= min(ids) <= max(ids) < model.padded_vocab_size:
            raise TrainingError(f"row {number} has an id that is none of the {model.padded_vocab_size} of the model")
        if not weight_of(row) > 0:
            raise TrainingError(f"row {number} has no target that counts")


def _require_fit(config: TrainConfig, data: Dataset, model: ModelConfig) -> None:
    """Chat data for a Base model, or the reverse, is an error unless the config says which kind is meant."""
    chat_model = capabilities_of(config.model, model).chat
    said = other_kind(data.kind, chat_model=chat_model, model=config.model)
    if said is not None and config.data.kind is None:
        raise TrainingError(f"{config.data.train or 'data'}: {said}; if it is meant so, set data.kind={data.kind}")
