"""The training loop. Batches depend on the seed and the step alone, so a killed run goes on as if it had not been."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chatglm3.model.cache import ConcatCache
from chatglm3.model.transformer import ChatGLMModel

from .documents import Example

GROUP = 16  # batches drawn at once, so that rows of similar length can be put together
SAVE_EVERY = 250  # steps
WIDTH, ROWS = 32, 512  # widths of batches and numbers of logits are multiples of these
Sampler = Callable[[Random], Example]


@dataclass(frozen=True)
class Stage:
    """How one stage is trained."""

    name: str
    steps: int
    tokens: int = 4096  # of a batch, padding included
    learning_rate: float = 2e-3
    warm_up: int = 100
    dropout: float = 0.1
    seed: int = 3


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right: inputs, targets and weights are `[b, s]`.

    A soft target is (row, column, other id, probability of the target).
    """

    inputs: Tensor
    targets: Tensor
    weights: Tensor
    soft: Sequence[tuple[int, int, int, float]]


def rounded(length: int, multiple: int) -> int:
    """`length`, rounded up: few different shapes, since the CPU library prepares its kernels anew for each."""
    return -(-length // multiple) * multiple


def collate(examples: Sequence[Example], tokens: int) -> Batch:
    """Pad the rows, and add empty ones, to about `tokens` in all; position `i` of a row predicts its id `i + 1`."""
    width = rounded(max(len(example.ids) for example in examples) - 1, WIDTH)
    shape = (max(len(examples), tokens // width), width + 1)
    ids, weights, soft = torch.zeros(shape, dtype=torch.long), torch.zeros(shape), []
    for row, example in enumerate(examples):
        ids[row, : len(example.ids)] = torch.tensor(example.ids)
        weights[row, : len(example.ids)] = torch.tensor(example.weights)
        soft += [(row, target.index - 1, target.other, target.probability) for target in example.soft]
    return Batch(ids[:, :-1], ids[:, 1:], weights[:, 1:], soft)


def draw_batches(stage: Stage, sample: Sampler, group: int) -> list[Batch]:
    """The batches of one group of steps: rows sorted by length and cut where a batch is full, in random order."""
    rng = Random(f"{stage.seed} {stage.name} {group}")
    examples: list[Example] = []
    while sum(len(example.ids) for example in examples) < (GROUP + 1) * stage.tokens:
        examples.append(sample(rng))
    batches, rows = [], list[Example]()
    for example in sorted(examples, key=lambda example: len(example.ids)):
        if (len(rows) + 1) * rounded(len(example.ids) - 1, WIDTH) > stage.tokens:
            batches.append(collate(rows, stage.tokens))
            rows = []
        rows.append(example)
    rng.shuffle(batches)
    return batches[:GROUP]


def batch_loss(model: ChatGLMModel, batch: Batch) -> Tensor:
    """Weighted mean cross entropy; a soft target shares its weight between two ids.

    Logits are computed only where a weight is not zero.
    """
    length = batch.inputs.shape[1]
    counted = batch.weights > 0
    places = counted.flatten().nonzero().squeeze(1)
    padded = F.pad(places, (0, rounded(len(places), ROWS) - len(places)))
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.hidden(batch.inputs, torch.arange(length)[None], [(ConcatCache(), length)])
        logits = model.logits(hidden.flatten(0, 1)[padded])[: len(places)].float()
    losses = torch.zeros_like(batch.weights)
    losses[counted] = F.cross_entropy(logits, batch.targets[counted], reduction="none")
    if batch.soft:
        rows, columns, others, shares = (torch.tensor(values) for values in zip(*batch.soft, strict=True))
        own = counted.flatten().cumsum(0).view_as(counted)[rows, columns] - 1  # their rows of `logits`
        wrong = F.cross_entropy(logits[own], others, reduction="none")
        losses[rows, columns] = shares * losses[rows, columns] + (1 - shares) * wrong
    return (losses * batch.weights).sum() / batch.weights.sum()


def make_optimizers(model: ChatGLMModel, stage: Stage) -> list[torch.optim.Optimizer]:
    """Muon (Jordan et al., 2024) for the matrices of the layers, AdamW for embeddings, output, norms and biases."""
    matrices = [p for block in model.blocks for p in block.parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inside]
    return [
        torch.optim.Muon(matrices, lr=stage.learning_rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=stage.learning_rate, weight_decay=0.1, betas=(0.9, 0.95)),
    ]


def rate(stage: Stage, step: int) -> float:
    """The learning rate: linear warm-up, then half a cosine down to a hundredth."""
    progress = min(1.0, step / stage.steps)
    return stage.learning_rate * min(1.0, (step + 1) / stage.warm_up) * (0.505 + 0.495 * math.cos(math.pi * progress))


def add_dropout(model: ChatGLMModel, stage: Stage) -> list[torch.utils.hooks.RemovableHandle]:
    """Dropout on what each block adds to the stream; the network itself has none."""

    def drop(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return F.dropout(output, stage.dropout)

    return [part.register_forward_hook(drop) for block in model.blocks for part in (block.self_attention, block.mlp)]


def train_stage(model: ChatGLMModel, stage: Stage, sample: Sampler, work: Path, save: Callable[[], None]) -> None:
    """Train `model` in place; resume from `work` if this stage has begun; call `save` at each checkpoint."""
    file = work / f"{stage.name}.pt"
    optimizers = make_optimizers(model, stage)
    start = restore(model, optimizers, file) if file.exists() else 0
    hooks = add_dropout(model, stage)
    batches: list[Batch] = []
    began, smooth = time.monotonic(), 0.0
    for step in range(start, stage.steps):
        if not batches or step % GROUP == 0:
            batches = draw_batches(stage, sample, step // GROUP)
        torch.manual_seed(stage.seed * 1_000_003 + step)
        loss = train_step(model, optimizers, batches[step % GROUP], rate(stage, step))
        smooth = loss if step == start else 0.98 * smooth + 0.02 * loss
        if (step + 1) % 50 == 0:
            seconds = (time.monotonic() - began) / (step + 1 - start)
            print(f"{stage.name} step {step + 1}/{stage.steps} loss {smooth:.4f} {seconds:.2f} s/step", flush=True)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == stage.steps:
            checkpoint(model, optimizers, step + 1, file)
            save()
    for hook in hooks:
        hook.remove()


def train_step(
    model: ChatGLMModel, optimizers: Sequence[torch.optim.Optimizer], batch: Batch, learning_rate: float
) -> float:
    """One update; returns the loss. Stops at once if it is not a number."""
    loss = batch_loss(model, batch)
    if not math.isfinite(loss.item()):
        raise SystemExit(f"recipes/nano: the loss is {loss.item()}; restart to go on from the last checkpoint")
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
    return loss.item()


def checkpoint(model: ChatGLMModel, optimizers: Sequence[torch.optim.Optimizer], step: int, file: Path) -> None:
    """Write everything a run needs to go on; the file is replaced in one move."""
    state = {"step": step, "model": model.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
    torch.save(state, file.with_suffix(".part"))
    file.with_suffix(".part").replace(file)


def restore(model: ChatGLMModel, optimizers: Sequence[torch.optim.Optimizer], file: Path) -> int:
    """Read a checkpoint; returns the number of steps done."""
    state = torch.load(file, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])
