"""The memory that is told before a run, against what a step keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from chatglm3.model.config import CHATGLM3_6B
from chatglm3.train.batches import Plan, pack
from chatglm3.train.memory import advice, estimate_memory
from chatglm3.train.methods import trained_weights
from train.runs import VOCABULARY, config_of, loss_of, prepared, random_rows, saved_bytes


@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}, {"method": "full"}])
def test_the_memory_estimate_is_near_what_a_step_keeps(changes: dict[str, Any]) -> None:
    config = config_of(batch_size=8, **changes)
    model = prepared(config)
    data = random_rows(VOCABULARY, (60, 50, 40, 40, 40, 60, 50, 60))
    lengths = [len(row.input_ids) for row in data.rows]
    trained = sum(weight.numel() for weight in trained_weights(model).values())
    plan = Plan(tuple(lengths), 8)
    estimate = estimate_memory(config, model.config, torch.float32, plan, trained)
    with saved_bytes(model) as count:
        loss_of(model, pack(data, range(8)))
    assert estimate.tokens == sum(lengths)
    expected = estimate.activations
    if config.gradient_checkpointing:  # one block is computed, and kept, during the backward pass only
        plain = config.model_copy(update={"gradient_checkpointing": False})
        whole = estimate_memory(plain, model.config, torch.float32, plan, trained).activations
        expected -= whole // model.config.num_layers
        assert expected < whole / 3
    assert 0.7 < count[0] / expected < 1.6
    assert estimate.trained == 16 * trained
    assert estimate.total > estimate.weights + estimate.trained + estimate.activations


def test_the_memory_of_the_released_model() -> None:
    plain = config_of(batch_size=4)
    less = config_of(batch_size=4, gradient_checkpointing=True, quantize=4)
    plan = Plan((700,) * 10, 4)
    sizes = [estimate_memory(c, CHATGLM3_6B, torch.bfloat16, plan, 1_949_696) for c in (plain, less)]
    assert sizes[0].weights == pytest.approx(12.5e9, rel=0.01) and sizes[1].weights < 4.5e9
    assert sizes[1].activations < sizes[0].activations / 8
    assert "activations of 2,800 tokens" in str(sizes[0])
    assert advice(plain, sizes[0], 10**12) is None
    said = advice(plain, sizes[0], 10**10)
    assert said is not None and "9.3 GiB are free" in said and "gradient_checkpointing=true" in said


@pytest.mark.parametrize(("batch_size", "steps"), [(2, 3), (7, 3), (12, 2), (12, None)])
def test_rows_that_come_again_in_a_pass_are_counted(batch_size: int, steps: int | None) -> None:
    plan = Plan((50, 20, 30), batch_size, wanted_steps=steps, epochs=1.0)
    longest = max(sum(plan.lengths[row] for row in plan.rows(step)) for step in range(plan.steps))
    found = estimate_memory(config_of(batch_size=batch_size), CHATGLM3_6B, torch.float32, plan, 1).tokens
    assert longest <= found <= longest + 30  # the rows that are left over are the longest ones
