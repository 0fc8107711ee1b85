"""What the tests of training share: a tiny model on disk, rows to learn, and runs of a few steps."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chatglm3.model.saving import save_model
from chatglm3.model.transformer import ChatGLMModel
from chatglm3.tokenizer import Tokenizer
from chatglm3.train.batches import Batch
from chatglm3.train.config import TrainConfig, make_config
from chatglm3.train.data import IGNORED, TrainingRow
from chatglm3.train.dataset import Dataset
from chatglm3.train.methods import prepare_model, trained_weights
from chatglm3.train.step import LossNetwork
from tiny_model import tiny_config, tiny_model

VOCABULARY = 512
BASE = {"model": "nano", "data": {"train": "rows.jsonl"}, "output": "out", "device": "cpu", "dtype": "float32"}
WORDS = ("今天天气怎么样？", "这本书写得很好", "Tell me a short story.", "房间太小了", "北京今天晴", "Hello! 22度")


def model_folder(folder: Path, tokenizer_dir: Path, seed: int = 0) -> Path:
    """A checkpoint of a tiny random model with the tiny tokenizer."""
    tokenizer = Tokenizer.from_pretrained(tokenizer_dir)
    save_model(tiny_model(tiny_config(tokenizer.vocab_size, context=1024), seed), folder)
    shutil.copy(tokenizer_dir / "tokenizer.model", folder)
    return folder


def data_file(path: Path, count: int, first: int = 0) -> Path:
    """Conversations of different lengths, one a line."""
    rows = [_conversation(number) for number in range(first, first + count)]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def _conversation(number: int) -> dict[str, Any]:
    question = WORDS[number % len(WORDS)] * (1 + number % 3)
    answer = WORDS[(number * 5 + 1) % len(WORDS)] + str(number)
    messages = [{"role": "user", "content": f"{question} {number}"}, {"role": "assistant", "content": answer}]
    return {"conversations": messages * (1 + number % 2)}


def settings(model: Path, data: Path, output: Path, /, **changes: Any) -> TrainConfig:
    """A run of six steps of four rows on the CPU."""
    words = {
        "model": str(model),
        "data": {"train": str(data)},
        "output": str(output),
        "steps": 6,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "save_every": 2,
        "log_every": 1,
        "device": "cpu",
        "dtype": "float32",
    }
    return make_config({**words, **changes}, "test")


def random_rows(vocabulary: int, lengths: tuple[int, ...], seed: int = 0) -> Dataset:
    """Rows of random ids, of which the second half is learned; they are rows 11, 12, … of a file."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for length in lengths:
        ids = torch.randint(3, vocabulary, (length,), generator=generator).tolist()
        rows.append(TrainingRow(ids, [IGNORED] * (length // 2) + ids[length // 2 :]))
    return Dataset("chat", tuple(rows), (), tuple(range(11, 11 + len(rows))))


def loss_of(model: ChatGLMModel | LossNetwork, batch: Batch) -> Tensor:
    """The summed loss of a batch."""
    network = model if isinstance(model, LossNetwork) else LossNetwork(model)
    loss: Tensor = network(batch.input_ids, batch.positions, batch.lengths, batch.places, batch.targets, batch.weights)
    return loss


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Of all that is trained; they are cleared."""
    found = {}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            assert weight.grad is not None, name
            found[name] = weight.grad
            weight.grad = None
    return found


def metrics(output: Path, name: str) -> list[float]:
    """The values of a metric in a run's metrics.jsonl."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line[name] for line in lines if name in line]


def config_of(**changes: Any) -> TrainConfig:
    return make_config({**BASE, **changes}, "test")


def prepared(config: TrainConfig, seed: int = 0) -> ChatGLMModel:
    model = tiny_model(tiny_config(VOCABULARY), seed)
    prepare_model(model, config)
    for name, weight in trained_weights(model).items():
        if name.endswith("lora_B"):  # as after some steps: with zeros nothing would reach A
            torch.nn.init.normal_(weight, std=0.1)
    return model


@contextmanager
def saved_bytes(model: ChatGLMModel) -> Iterator[list[int]]:
    """The bytes that the backward pass keeps besides the weights, each storage counted once."""
    count, seen = [0], {weight.untyped_storage().data_ptr(): weight.data for weight in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen[storage.data_ptr()] = tensor
            count[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield count
