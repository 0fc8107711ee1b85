"""One run of LoRA for each setting of a small grid, with the package's own trainer; the validation part chooses."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from time import perf_counter

import chatglm3
from chatglm3.classify import Task
from chatglm3.messages import Message
from chatglm3.model.hub import resolve
from chatglm3.tokenizer import Tokenizer
from chatglm3.train.checkpoints import checkpoints_of
from chatglm3.train.config import TrainConfig, make_config
from chatglm3.train.data import TrainingRow, encode_completion, encode_conversation
from chatglm3.train.dataset import Dataset
from chatglm3.train.loop import train
from chatglm3.train.progress import Reporter

from ..nano.data import Review
from ..nano.report import QUESTION
from .data import Parts

BATCH = 16
ALL = ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h")


@dataclass(frozen=True)
class Setting:
    """What of a run is tried out; alpha is four times the rank throughout, as in the official settings."""

    targets: tuple[str, ...]
    rank: int
    rate: float
    epochs: int

    def __str__(self) -> str:
        return f"{'all' if self.targets == ALL else 'qkv'}-r{self.rank}-{self.rate:.0e}-{self.epochs}"


GRID = (
    Setting(("query_key_value",), 8, 3e-3, 2),
    Setting(ALL, 8, 1e-3, 2),
    Setting(ALL, 8, 3e-3, 2),
    Setting(ALL, 8, 1e-3, 4),
)


@dataclass(frozen=True)
class Route:
    """A model that is fine-tuned: a Chat model on conversations, or a Base model on plain text."""

    kind: str
    model: str

    @property
    def task(self) -> Task:
        """What the model is asked, in training and in measuring alike."""
        return QUESTION.task(chat=self.kind == "Chat")


@dataclass(frozen=True)
class Trial:
    """A finished run, and what its adapter makes of the validation part.

    `loss` is the mean of -log p(true label), `accuracy` the share of rows whose most probable label is the true one.
    """

    setting: Setting
    adapter: Path
    steps: int
    loss: float
    accuracy: float
    seconds: float


def training_row(tokenizer: Tokenizer, task: Task, review: Review) -> TrainingRow:
    """The review in the words that it is measured with, and its label: what a file of such rows would give."""
    if not task.chat:
        return encode_completion(tokenizer, task.plain_text(review.text), review.label)
    turns = (*task.conversation(), Message("user", task.fill(review.text)), Message("assistant", review.label))
    return encode_conversation(tokenizer, turns)


def best(trials: Sequence[Trial]) -> Trial:
    """The most accurate one on the validation part; of equals the one with the smaller loss."""
    return max(trials, key=lambda trial: (trial.accuracy, -trial.loss))


def tune(
    route: Route, parts: Parts, grid: Sequence[Setting], work: Path, steps: int | None, reporter: Reporter
) -> Iterator[Trial]:
    """Every setting in turn. A run that is finished in `work` is read, and one that was stopped goes on.

    The folder has the name of all that a run depends on, so another model or other rows begin anew.
    """
    folder = resolve(route.model)
    tokenizer = Tokenizer.from_pretrained(folder)
    rows = tuple(training_row(tokenizer, route.task, row) for row in parts.train)
    data = Dataset("chat" if route.task.chat else "base", rows, (), tuple(range(1, len(rows) + 1)))
    weights = b"".join(file.read_bytes() for file in sorted(folder.glob("*.safetensors")))
    asked = [[list(row.input_ids) for row in rows], [(row.text, row.label) for row in parts.validation], steps, BATCH]
    digest = sha256(json.dumps(asked).encode() + weights).hexdigest()[:12]
    for setting in grid:
        reporter.note(f"{route.kind}, {setting}")
        config = _config(route, setting, work / f"{route.kind.lower()}-{digest}", len(rows), steps)
        yield _trial(route, setting, config, data, parts.validation, reporter)


def _trial(
    route: Route, setting: Setting, config: TrainConfig, data: Dataset, measured: Sequence[Review], reporter: Reporter
) -> Trial:
    done = config.output / "trial.json"
    if done.exists():
        return Trial(setting, config.output / "adapter", **json.loads(done.read_text(encoding="utf-8")))
    began = perf_counter()
    resume = "latest" if checkpoints_of(config.output) else None
    result = train(config, rows=data, resume=resume, reporter=reporter)
    loss, accuracy = _validate(route, result.folder, measured)
    trial = Trial(setting, result.folder, result.steps, loss, accuracy, perf_counter() - began)
    kept = {name: value for name, value in asdict(trial).items() if name not in ("setting", "adapter")}
    done.write_text(json.dumps(kept) + "\n", encoding="utf-8")
    return trial


def _config(route: Route, setting: Setting, folder: Path, rows: int, steps: int | None) -> TrainConfig:
    length = {"epochs": setting.epochs} if steps is None else {"steps": steps}
    raw = {
        "model": route.model,
        "output": folder / str(setting),
        "lora": {"targets": setting.targets, "rank": setting.rank, "alpha": 4.0 * setting.rank},
        "batch_size": BATCH,
        "learning_rate": setting.rate,
        "save_every": max(1, rows // BATCH),
        "keep": 1,
        "log_every": 25,
        "device": "cpu",
    }
    return make_config(raw | length, "recipes/waimai")


def _validate(route: Route, adapter: Path, rows: Sequence[Review]) -> tuple[float, float]:
    """Loss and accuracy of label scoring."""
    task = route.task
    with chatglm3.load(route.model, adapter=adapter) as glm:
        found = glm.classify([row.text for row in rows], task.labels, system=task.system, prompt=task.template)
    pairs = list(zip(found, rows, strict=True))
    loss = -sum(math.log(max(answer.probabilities[row.label], 1e-12)) for answer, row in pairs)
    return loss / len(rows), sum(answer.label == row.label for answer, row in pairs) / len(rows)
