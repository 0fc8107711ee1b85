"""Loss and gradients of a step: the official values, whatever way the rows are laid out and computed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from chatglm3.errors import TrainingError
from chatglm3.model.checkpoint import load_model
from chatglm3.train import loss as loss_module
from chatglm3.train.batches import Plan, deal, in_order, pack, weight_of
from chatglm3.train.data import IGNORED, SoftTarget, TrainingRow
from chatglm3.train.dataset import Dataset
from chatglm3.train.devices import make_accelerator
from chatglm3.train.loss import chunk_rows, target_loss
from chatglm3.train.methods import trained_weights
from chatglm3.train.step import LossNetwork, learning_rate, make_optimizers, measure_loss, train_step
from golden import GOLDEN, golden_json, golden_tensors, needs_golden
from tiny_model import tiny_config, tiny_model
from train.runs import VOCABULARY, config_of, gradients, loss_of, prepared, random_rows, saved_bytes

LENGTHS = (9, 30, 4, 17, 12, 25, 7, 11)


def assert_close(found: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        assert torch.allclose(gradient, wanted[name], atol=tolerance, rtol=1e-4), name


@needs_golden
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("index", range(len(golden_json("training.json").get("batches", ()))))
def test_loss_and_gradients_are_the_official_ones(index: int, recompute: bool) -> None:
    official = golden_json("training.json")["batches"][index]
    rows = []
    for ids, labels, mask in zip(official["input_ids"], official["labels"], official["attention_mask"], strict=True):
        start = mask.index(1)
        rows.append(TrainingRow(ids[start:], labels[start:]))
    batch = pack(Dataset("chat", tuple(rows), (), tuple(range(len(rows)))), range(len(rows)))
    model = load_model(GOLDEN / "tiny-chat", device="cpu", dtype="float32").requires_grad_(True)
    model.recompute = recompute
    loss = loss_of(model, batch) / len(batch.targets)
    loss.backward()
    assert loss.item() == pytest.approx(official["loss"], abs=2e-4)
    tensors, found = golden_tensors("training.safetensors"), gradients(model)
    for name, norm in official["gradient_norms"].items():
        assert found[name].norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-5)
    stored = {name: tensors[f"batch{index}.grad.{name}"] for name in found if f"batch{index}.grad.{name}" in tensors}
    assert stored
    assert_close({name: found[name] for name in stored}, stored, 2e-4)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("method", ["lora", "ptuning", "full"])
def test_rows_in_one_sequence_do_not_see_each_other(method: str, recompute: bool) -> None:
    model = prepared(config_of(method=method, ptuning={"length": 3, "projection": True})).eval()
    model.recompute = recompute
    data = random_rows(VOCABULARY, LENGTHS)
    together = loss_of(model, pack(data, range(len(LENGTHS))))
    together.backward()
    wanted = gradients(model)
    single = [loss_of(model, pack(data, [row])) for row in range(len(LENGTHS))]
    for loss in single:
        loss.backward()
    assert sum(loss.item() for loss in single) == pytest.approx(together.item(), rel=1e-5)
    assert_close(gradients(model), wanted, 1e-4)


@pytest.mark.parametrize("method", ["lora", "ptuning"])
def test_recomputing_keeps_less_and_changes_no_gradient_with_dropout(method: str) -> None:
    model = prepared(config_of(method=method, ptuning={"length": 3}))
    batch = pack(random_rows(VOCABULARY, LENGTHS), range(len(LENGTHS)))
    kept, found = [], []
    for recompute in (False, True):
        model.recompute = recompute
        torch.manual_seed(1)
        with saved_bytes(model) as count:
            loss = loss_of(model, batch)
        loss.backward()
        kept.append(count[0])
        found.append(gradients(model))
    assert_close(found[0], found[1], 0)
    assert kept[1] < kept[0] / 2


class Largest(TorchDispatchMode):
    """The numbers in the largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return made


def test_the_scores_of_all_tokens_never_exist_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", 4 * VOCABULARY * 10)
    assert chunk_rows(VOCABULARY) == 10
    model = prepared(config_of())
    batch = pack(random_rows(VOCABULARY, (80, 80, 80)), range(3))
    with Largest() as largest:
        loss_of(model, batch).backward()
    assert len(batch.targets) * VOCABULARY / 2 > largest.numbers >= 10 * VOCABULARY


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("trained", [False, True])
def test_the_chunked_loss_is_the_cross_entropy(
    trained: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_BYTES", 4 * VOCABULARY * 7)
    model = tiny_model(tiny_config(VOCABULARY)).to(dtype)
    weight = model.transformer.output_layer.weight.requires_grad_(trained)
    hidden = torch.randn(30, 32, dtype=dtype, requires_grad=True)
    targets, counts = torch.randint(VOCABULARY, (30,)), torch.rand(30)
    wanted = (F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="none") * counts).sum()
    (wanted * 0.5).backward()
    expected, expected_weight = hidden.grad, weight.grad
    hidden.grad = weight.grad = None
    found = target_loss(model, hidden, targets, counts)
    (found * 0.5).backward()
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    assert found.dtype == torch.float32 and found.item() == pytest.approx(wanted.item(), rel=1e-4)
    assert expected is not None and torch.allclose(hidden.grad, expected, atol=tolerance)  # type: ignore[arg-type]
    assert (weight.grad is not None) == trained
    if trained:
        assert torch.allclose(weight.grad, expected_weight, atol=tolerance)


@pytest.mark.parametrize("accumulation", [1, 2, 8])
def test_a_step_is_the_mean_over_the_targets_of_all_its_passes(accumulation: int) -> None:
    data = random_rows(VOCABULARY, LENGTHS)
    wanted, wanted_loss = step_once(data, 1)
    found, loss = step_once(data, accumulation)
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    assert_close(found, wanted, 1e-6)


def step_once(data: Dataset, accumulation: int) -> tuple[dict[str, Tensor], float]:
    config = config_of(
        lora={"dropout": 0.0}, accumulation=accumulation, batch_size=len(LENGTHS) // accumulation, learning_rate=0.1
    )
    model = prepared(config)
    accelerator = make_accelerator(config, torch.float32, model.config)
    network, optimizer = accelerator.prepare(LossNetwork(model), torch.optim.SGD(model.parameters(), lr=0.1))
    plan = Plan(LENGTHS, config.batch_size, accumulation)
    batches = [pack(data, share) for share in plan.shares(0, 0)]
    targets = sum(len(batch.targets) for batch in batches)
    result = train_step(accelerator, network, [optimizer], batches, targets, clip=0.5)
    assert result.gradient_norm is not None and result.gradient_norm > 0.5
    return {name: weight.detach() for name, weight in trained_weights(model).items()}, result.loss


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_loss_that_is_not_finite_stops_with_the_numbers_of_the_rows(value: float) -> None:
    config = config_of(accumulation=2)
    model = prepared(config)
    data = random_rows(VOCABULARY - 1, LENGTHS)
    bad = TrainingRow([VOCABULARY - 1] * 6, [VOCABULARY - 1] * 6)
    data = replace(data, rows=(*data.rows, bad), numbers=(*data.numbers, 40))
    model.transformer.embedding.word_embeddings.weight.data[VOCABULARY - 1] = value
    accelerator = make_accelerator(config, torch.float32, model.config)
    network, *optimizers = accelerator.prepare(LossNetwork(model), *make_optimizers(model, config))
    batches = [pack(data, [0, 1]), pack(data, [8, 3])]
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) on row\(s\) 14, 40 of the training data") as caught:
        train_step(accelerator, network, optimizers, batches, 50, None)
    assert "\n" not in str(caught.value)


def test_weights_and_soft_targets_share_the_loss_between_ids() -> None:
    model = prepared(config_of()).eval()
    ids = [5, 6, 7, 8, 9]
    row = TrainingRow(ids, [IGNORED, IGNORED, 7, 8, 9], [0.0, 0.0, 1.0, 8.0, 0.5], (SoftTarget(3, 20, 0.75),))
    data = Dataset("base", (row,), (), (1,))
    batch = pack(data, [0])
    assert weight_of(row) == batch.weights.sum().item() == 9.5
    scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    wanted = -scores[1, 7] - 8 * (0.75 * scores[2, 8] + 0.25 * scores[2, 20]) - 0.5 * scores[3, 9]
    assert loss_of(model, batch).item() == pytest.approx(wanted.item(), rel=1e-5)
    network = make_accelerator(config_of(), torch.float32, model.config).prepare(LossNetwork(model))
    found = measure_loss(make_accelerator(config_of(), torch.float32, model.config), network, [batch])
    assert found == pytest.approx(wanted.item() / 9.5, rel=1e-5)


def test_dropout_of_the_stream_is_there_while_the_model_learns() -> None:
    model, batch = prepared(config_of(method="full", hidden_dropout=0.5)), pack(random_rows(VOCABULARY, LENGTHS), [1])
    assert loss_of(model, batch).item() != loss_of(model, batch).item()
    model.eval()
    plain = tiny_model(tiny_config(VOCABULARY), 0)
    assert loss_of(model, batch).item() == pytest.approx(loss_of(plain, batch).item(), rel=1e-6)


def test_muon_trains_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    config = config_of(method="full", optimizer="muon")
    model = prepared(config)
    muon, adamw = make_optimizers(model, config)
    first, rest = ([w for group in o.param_groups for w in group["params"]] for o in (muon, adamw))
    assert len(first) == 4 * len(model.blocks) and all(weight.ndim == 2 for weight in first)
    assert len(first) + len(rest) == len(trained_weights(model))
    assert any(weight is model.transformer.output_layer.weight for weight in rest)


def test_measuring_is_the_mean_over_all_targets_without_dropout() -> None:
    config = config_of(lora={"dropout": 0.9})
    model = prepared(config)
    data = random_rows(VOCABULARY, LENGTHS)
    accelerator = make_accelerator(config, torch.float32, model.config)
    network = accelerator.prepare(LossNetwork(model))
    batches = [pack(data, share) for share in in_order(LENGTHS, 3)]
    found = measure_loss(accelerator, network, [*batches, pack(data, [])])
    assert model.training
    whole = pack(data, range(len(LENGTHS)))
    assert found == pytest.approx(loss_of(model.eval(), whole).item() / len(whole.targets), rel=1e-4)


def test_a_pass_without_rows_has_no_loss_and_zero_gradients() -> None:
    model = prepared(config_of(method="full"))
    batch = pack(random_rows(VOCABULARY, LENGTHS), [])
    assert batch.rows == () and len(batch.targets) == 0
    loss = loss_of(model, batch)
    loss.backward()
    assert loss.item() == 0
    assert all(not gradient.any() for gradient in gradients(model).values())


def test_each_epoch_has_every_row_once_whatever_the_number_of_processes() -> None:
    lengths = tuple(range(5, 28))
    plan = Plan(lengths, batch_size=2, accumulation=2, processes=1, seed=3, epochs=2)
    seen = [row for step in range(plan.steps) for row in plan.rows(step)]
    assert sorted(seen[:23]) == sorted(seen[23:]) == list(range(23)) and seen[:23] != seen[23:]
    assert plan.steps == 12 and plan.epoch(12) == 2 and len(plan.rows(11)) == 2
    two = Plan(lengths, batch_size=2, accumulation=1, processes=2, seed=3, epochs=2)
    assert [two.rows(step) for step in range(12)] == [plan.rows(step) for step in range(12)]
    shares = [share for process in range(2) for share in two.shares(11, process)]
    assert sorted(map(len, shares)) == [1, 1]
    assert Plan(lengths, 2, seed=4, epochs=2).rows(0) != Plan(lengths, 2, seed=3, epochs=2).rows(0)


def test_rows_are_dealt_out_by_their_tokens() -> None:
    dealt = deal(range(6), (50, 10, 10, 10, 10, 10), 2)
    assert dealt == [[0], [1, 2, 3, 4, 5]]
    assert deal([0], (5,), 3) == [[0], [], []]
    shares = [[list(share) for share in in_order((3, 9, 5), 2, process, 2)] for process in range(2)]
    assert shares == [[[1, 0]], [[2]]]
    assert list(in_order((3,), 2, 1, 2)) == [[]]


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, 0.8536, 0.5, 0.1464]),
    ],
)
def test_learning_rates(schedule: str, rates: list[float]) -> None:
    config = config_of(schedule=schedule, warmup_steps=2, learning_rate=1.0)
    assert [learning_rate(config, step, 6) for step in range(6)] == pytest.approx(rates, abs=1e-4)
