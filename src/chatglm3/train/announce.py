"""What is told of a run before a weight is read."""

from __future__ import annotations

from pathlib import Path

import torch

from chatglm3.model.memory import free_memory
from chatglm3.model.transformer import ChatGLMModel
from chatglm3.train.batches import Plan
from chatglm3.train.config import TrainConfig
from chatglm3.train.dataset import Dataset
from chatglm3.train.devices import Accelerator, uses_deepspeed
from chatglm3.train.materials import Materials
from chatglm3.train.memory import advice, estimate_memory
from chatglm3.train.methods import trained_count
from chatglm3.train.progress import Reporter


def announce(
    config: TrainConfig,
    materials: Materials,
    plan: Plan,
    dtype: torch.dtype,
    accelerator: Accelerator,
    reporter: Reporter,
) -> None:
    """Tell the rows, the trained numbers, the steps and the memory. `TrainingError` if the method cannot be had."""
    data, sets = config.data, (materials.train, materials.validation, materials.test)
    for file, rows in zip((data.train, data.validation, data.test), sets, strict=True):
        if rows is not None:
            reporter.note(describe(file, rows))
    if config.deepspeed is not None and not uses_deepspeed(config):
        reporter.note(f"{config.deepspeed} is not used, since there is no GPU")
    with torch.device("meta"):
        trained = trained_count(config, ChatGLMModel(materials.model))
    whole = materials.model.parameter_count + (0 if config.method == "full" else trained)
    reporter.note(f"{config.method}: {trained:,} of {whole:,} numbers are trained")
    where = f"{accelerator.num_processes} x {accelerator.device.type}"
    reporter.note(
        f"{plan.steps:,} steps of {plan.rows_per_step:,} rows, {plan.epoch(plan.steps):.1f} epochs; "
        f"{str(dtype).removeprefix('torch.')} on {where}"
    )
    estimate = estimate_memory(config, materials.model, dtype, plan, trained)
    reporter.note(f"memory: {estimate}")
    warning = advice(config, estimate, free_memory(accelerator.device))
    if warning is not None:
        reporter.note(f"memory: {warning}")


def describe(file: Path | None, data: Dataset) -> str:
    """One line on the rows of a file, or on those that were made in Python."""
    line = f"{file or 'data'}: {len(data.rows):,} {data.kind} rows"
    if data.shortened:
        line += f", {len(data.shortened):,} of them shortened"
    if data.split:
        line += f", {len(data.split):,} longer texts in pieces"
    dropped = [f"{count:,} with {reason}" for reason, count in data.dropped.items()]
    return line + (f"; dropped {', '.join(dropped)}" if dropped else "")
