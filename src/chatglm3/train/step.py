"""One step: the network as its own loss, and what accelerate does with it.

The loss of a step is the weighted mean over the targets of its global batch: all rows of all forward passes of all
processes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from chatglm3.errors import TrainingError
from chatglm3.model.transformer import ChatGLMModel
from chatglm3.train.batches import Batch
from chatglm3.train.config import TrainConfig
from chatglm3.train.devices import Accelerator
from chatglm3.train.loss import target_loss

_SHOWN_ROWS = 20


class RowCache:
    """What a row sees besides itself: a P-Tuning prefix or nothing.

    Nothing is stored, so a block can be computed again for the backward pass.
    """

    def __init__(self, model: ChatGLMModel) -> None:
        start = model.new_concat_cache(1)
        self._prefix = start.layers
        self.length = self.prefix_length = start.prefix_length

    def append(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The prefix and `[1, s, groups, d]` behind it: keys and values `[1, groups, P + s, d]`."""
        key, value = key.transpose(1, 2), value.transpose(1, 2)
        if not self._prefix:
            return key, value
        prefix_key, prefix_value = self._prefix[layer]
        return torch.cat((prefix_key, key), dim=2), torch.cat((prefix_value, value), dim=2)

    def advance(self, tokens: int) -> None:
        """A row comes whole, so there is nothing to count."""


class LossNetwork(nn.Module):
    """A network whose forward pass is its loss, as the wrappers for several devices want it."""

    def __init__(self, model: ChatGLMModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        lengths: Sequence[int],
        places: Tensor,
        targets: Tensor,
        weights: Tensor,
    ) -> Tensor:
        """The sum of the cross entropies of the targets of a `Batch`, in fp32."""
        segments = [(RowCache(self.model), length) for length in lengths]
        hidden = self.model.hidden(input_ids, positions, segments)[0]
        return target_loss(self.model, hidden[places], targets, weights)


@dataclass(frozen=True)
class StepResult:
    """The mean loss of a step's targets, and the length of the gradient before it was clipped."""

    loss: float
    gradient_norm: float | None


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """The rate of step `step` (from 0) of `steps`: a linear warm-up, then the schedule down to zero at the end."""
    warmup = min(config.warmup_steps, steps)
    if step < warmup:
        return config.rate * (step + 1) / warmup
    progress = (step - warmup) / (steps - warmup)
    if config.schedule == "cosine":
        return config.rate * (1 + math.cos(math.pi * progress)) / 2
    return config.rate * (1 - progress if config.schedule == "linear" else 1)


def make_optimizers(model: ChatGLMModel, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """AdamW for what is trained; vectors (norms and biases) do not decay.

    With `optimizer: muon` the matrices of the blocks have Muon (Jordan et al., 2024), its steps as long as AdamW's.
    """
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    found: list[torch.optim.Optimizer] = []
    if config.optimizer == "muon":
        matrices = [weight for block in model.blocks for weight in block.parameters() if weight.ndim == 2]
        found.append(_muon(matrices, config))
        inside = set(map(id, matrices))
        trained = [weight for weight in trained if id(weight) not in inside]
    groups = [
        {"params": [weight for weight in trained if weight.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [weight for weight in trained if weight.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return [*found, torch.optim.AdamW(groups, lr=config.rate, betas=config.adam_betas, eps=config.adam_epsilon)]


def _muon(matrices: list[nn.Parameter], config: TrainConfig) -> torch.optim.Optimizer:
    if not hasattr(torch.optim, "Muon"):
        raise TrainingError(f"optimizer=muon needs PyTorch 2.9, and this is {torch.__version__}; use optimizer=adamw")
    return torch.optim.Muon(matrices, lr=config.rate, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")


def train_step(
    accelerator: Accelerator,
    network: nn.Module,
    optimizers: Sequence[Any],
    batches: Sequence[Batch],
    weight: float,
    clip: float | None,
) -> StepResult:
    """One update from this process's `batches` of a global batch whose targets count `weight` together.

    Raises `TrainingError` with the numbers of the rows if the loss or the gradient is not finite.
    """
    total = torch.zeros((), device=accelerator.device)
    norm: float | None = None
    # accelerate divides by the number of passes and processes; the mean over all targets is wanted.
    scale = accelerator.num_processes * len(batches) / weight
    for batch in batches:
        with accelerator.accumulate(network):
            loss = _loss(network, batch, "training")
            accelerator.backward(loss * scale)
            total += loss.detach()
            if accelerator.sync_gradients:
                norm = _clip(accelerator, network, clip, batches)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    summed: Any = accelerator.reduce(total, "sum")
    return StepResult(summed.item() / weight, norm)


@torch.no_grad()
def measure_loss(accelerator: Accelerator, network: nn.Module, batches: Iterable[Batch]) -> float:
    """The mean loss of the targets of this and all other processes' `batches`."""
    network.eval()
    counted = torch.zeros(2, dtype=torch.float64)
    for batch in batches:
        loss, weight = _loss(network, batch, "validation"), batch.weights.sum()
        counted += torch.tensor([loss.item(), weight.item()], dtype=torch.float64)
    network.train()
    summed: Any = accelerator.reduce(counted.float().to(accelerator.device), "sum")
    total, weights = summed.tolist()
    return float(total / weights)


def _loss(network: nn.Module, batch: Batch, what: str) -> Tensor:
    loss: Tensor = network(batch.input_ids, batch.positions, batch.lengths, batch.places, batch.targets, batch.weights)
    if not math.isfinite(loss.item()):
        raise _not_finite(f"the loss is {loss.item()}", [batch], what)
    return loss


def _clip(accelerator: Accelerator, network: nn.Module, clip: float | None, batches: Sequence[Batch]) -> float | None:
    """Shorten the gradient to `clip`; its length before that, or None if a wrapper does not tell."""
    length = accelerator.clip_grad_norm_(network.parameters(), math.inf if clip is None else clip)
    if length is None:
        return None
    norm = float(length)
    if not math.isfinite(norm) and accelerator.scaler is None:  # with a scaler, the step is left out by design
        raise _not_finite(f"the gradient's length is {norm}", batches, "training")
    return norm


def _not_finite(found: str, batches: Sequence[Batch], what: str) -> TrainingError:
    rows = sorted(row for batch in batches for row in batch.rows)
    more = f" and {len(rows) - _SHOWN_ROWS} more" if len(rows) > _SHOWN_ROWS else ""
    return TrainingError(
        f"{found} on row(s) {', '.join(map(str, rows[:_SHOWN_ROWS]))}{more} of the {what} data: look at these rows, "
        "or lower learning_rate, or use dtype=float32"
    )
