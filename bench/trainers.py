"""Who is measured by `train.py`, each in a process of its own: LoRA on the same weights, rows and steps.

This project runs as its users run it, through `chatglm3.train.loop.train`; the other is PEFT on transformers' own GLM,
which computes ChatGLM3's network, in the Hugging Face Trainer with its defaults.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from chatglm3.tokenizer import Tokenizer
from chatglm3.train.batches import Plan
from chatglm3.train.config import make_config
from chatglm3.train.data import IGNORED, TrainingRow
from chatglm3.train.dataset import load_dataset
from chatglm3.train.loop import train
from chatglm3.train.progress import Progress, Silent

RANK, ALPHA, DROPOUT, RATE = 8, 32, 0.1, 1e-4
LONGEST = 4096
WARM_UP = 1
"""Steps that are not timed."""
_THEIR_TARGETS = ("q_proj", "k_proj", "v_proj")  # together our query_key_value


@dataclass(frozen=True)
class Job:
    """What to train on what. `ours` and `theirs` hold the same weights."""

    ours: Path
    theirs: Path
    rows: Path
    output: Path
    dtype: str
    batch_size: int
    steps: int
    threads: int
    autocast: bool
    """Whether the Trainer runs with `bf16=True`; the weights have `dtype` in any case."""

    @property
    def batches(self) -> list[list[TrainingRow]]:
        """The rows of each step as ids and labels, in the order of our loop, which both take."""
        data = load_dataset(self.rows, Tokenizer.from_pretrained(self.ours), kind="base", max_length=LONGEST).rows
        plan = Plan(tuple(len(row.input_ids) for row in data), self.batch_size, wanted_steps=self.steps)
        return [[data[place] for place in plan.rows(step)] for step in range(self.steps)]


@dataclass(frozen=True)
class Measured:
    """Tokens a second of the timed steps (padding is none), peak memory of the process in bytes, loss of each step."""

    speed: float
    memory: int
    losses: tuple[float, ...]


def train_ours(job: Job) -> Measured:
    """This project."""
    torch.set_num_threads(job.threads)
    raw: dict[str, Any] = {
        "model": str(job.ours),
        "data": {"train": str(job.rows), "kind": "base", "max_length": LONGEST},
        "output": str(job.output / "ours"),
        "lora": {"rank": RANK, "alpha": ALPHA, "dropout": DROPOUT},
        "steps": job.steps,
        "batch_size": job.batch_size,
        "learning_rate": RATE,
        "schedule": "linear",
        "warmup_steps": 0,
        "dtype": job.dtype,
        "device": "cpu",
        "save_every": None,
        "log_every": 1,
    }
    clock = _Clock()
    train(make_config(raw, "bench"), reporter=clock)
    return _measured(job, clock.times, clock.losses)


class _Clock(Silent):
    """When each step ended, and its loss."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.losses: list[float] = []

    def progress(self, now: Progress) -> None:
        self.times.append(time.perf_counter())
        self.losses.append(now.loss)


def train_theirs(job: Job) -> Measured:
    """PEFT and transformers."""
    import transformers as hf
    from peft import LoraConfig, get_peft_model

    torch.set_num_threads(job.threads)
    times: list[float] = []

    class Callback(hf.TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: object, **__: object) -> None:
            times.append(time.perf_counter())

    arguments = hf.TrainingArguments(
        str(job.output / "theirs"),
        per_device_train_batch_size=job.batch_size,
        max_steps=job.steps,
        learning_rate=RATE,
        bf16=job.autocast,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
    )
    arguments.dataloader_pin_memory = False  # it would only warn that there is no GPU
    hf.set_seed(0)
    model = hf.GlmForCausalLM.from_pretrained(job.theirs, dtype=getattr(torch, job.dtype))
    lora = LoraConfig("CAUSAL_LM", r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules=list(_THEIR_TARGETS))
    rows = [row._asdict() for batch in job.batches for row in batch]
    trainer = hf.Trainer(get_peft_model(model, lora), arguments, _collate, train_dataset=rows, callbacks=[Callback()])
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return _measured(job, times, losses)


def _collate(rows: Sequence[Mapping[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Rows padded on the right to the longest of them."""
    lengths = [len(row["input_ids"]) for row in rows]
    columns = {name: [row[name] for row in rows] for name in ("input_ids", "labels")}
    columns["attention_mask"] = [[1] * length for length in lengths]
    fill = {"labels": IGNORED}
    return {
        name: torch.tensor([values + [fill.get(name, 0)] * (max(lengths) - len(values)) for values in column])
        for name, column in columns.items()
    }


def _measured(job: Job, times: Sequence[float], losses: Sequence[float]) -> Measured:
    tokens = sum(len(row.input_ids) for batch in job.batches[WARM_UP:] for row in batch)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    speed = tokens / (times[-1] - times[WARM_UP - 1])
    return Measured(speed, peak if sys.platform == "darwin" else 1024 * peak, tuple(losses))
