"""Calling the model itself, against the official forward."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from chatglm3.compat import (
    AutoModel,
    AutoModelForSequenceClassification,
    ChatGLMForConditionalGeneration,
    ChatGLMForSequenceClassification,
)
from chatglm3.errors import ContextLengthError
from chatglm3.model.checkpoint import load_model
from golden import GOLDEN, golden_json, golden_tensors, needs_golden
from taught import Loaded
from tiny_model import tiny_config, tiny_model

CASES: dict[str, Any] = {case["name"]: case for case in golden_json("forward.json").get("cases", [])}
TOLERANCE = {"float32": 2e-4, "float16": 0.1, "bfloat16": 0.5}
STEPS = {name for name, case in CASES.items() if "steps" in case}


@pytest.fixture(scope="module")
def tensors() -> dict[str, Tensor]:
    return golden_tensors("forward.safetensors")


def inputs_of(case: dict[str, Any]) -> dict[str, Tensor]:
    names = ("input_ids", "attention_mask", "position_ids")
    return {name: torch.tensor(case[name]) for name in names if name in case}


def assert_logits(logits: Tensor, tensors: dict[str, Tensor], name: str, tolerance: float, mask: Tensor | None) -> None:
    """Agreement at the columns given and over the whole vocabulary, in rows that are not padding."""
    rows = torch.ones(logits.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
    expected = tensors[f"{name}.logits_columns"].float()
    found = logits.detach().float()
    columns = tensors["columns"][: expected.shape[-1]]
    torch.testing.assert_close(found[..., columns][rows], expected[rows], rtol=0, atol=tolerance)
    summed = tensors[f"{name}.logsumexp"]
    torch.testing.assert_close(found.logsumexp(-1)[rows], summed[rows], rtol=0, atol=tolerance)


@needs_golden
@pytest.mark.parametrize("name", [name for name in CASES if name not in STEPS])
def test_official_passes(name: str, tensors: dict[str, Tensor]) -> None:
    case = CASES[name]
    network = load_model(
        GOLDEN / "tiny-chat", device="cpu", dtype=case["dtype"], config_overrides=case.get("config", {})
    )
    inputs = inputs_of(case)
    logits = ChatGLMForConditionalGeneration(network)(**inputs).logits
    assert_logits(logits, tensors, name, TOLERANCE[case["dtype"]], inputs.get("attention_mask"))


@needs_golden
def test_official_steps_with_a_cache(official: Loaded, tensors: dict[str, Tensor]) -> None:
    for name in STEPS:
        past = None
        if "starts_from" in CASES[name]:
            past = official.model(**inputs_of(CASES[CASES[name]["starts_from"]])).past_key_values
        for step in CASES[name]["steps"]:
            output = official.model(**inputs_of(step), past_key_values=past)
            past = output.past_key_values
            assert_logits(output.logits, tensors, step["tensors"], 2e-4, None)
        if name == "cached":
            keys, values = (torch.stack([layer[i] for layer in past]) for i in (0, 1))
            torch.testing.assert_close(keys, tensors["cached.final_cache_key"], rtol=0, atol=2e-4)
            torch.testing.assert_close(values, tensors["cached.final_cache_value"], rtol=0, atol=2e-4)


@needs_golden
def test_official_states_and_caches(official: Loaded, tensors: dict[str, Tensor]) -> None:
    output = official.model(**inputs_of(CASES["single"]), output_hidden_states=True)
    states, past = torch.stack(output.hidden_states), output.past_key_values
    torch.testing.assert_close(states, tensors["single.hidden_states"], rtol=0, atol=2e-4)
    torch.testing.assert_close(torch.stack([k for k, _ in past]), tensors["single.cache_key"], rtol=0, atol=2e-4)
    torch.testing.assert_close(torch.stack([v for _, v in past]), tensors["single.cache_value"], rtol=0, atol=2e-4)
    torch.testing.assert_close(output.logits, tensors["single.logits"], rtol=0, atol=2e-4)


@needs_golden
def test_official_losses_and_gradients(official: Loaded) -> None:
    for batch in golden_json("training.json")["batches"]:
        loss = official.model(**inputs_of(batch), labels=torch.tensor(batch["labels"])).loss
        official.model.zero_grad()
        loss.backward()
        assert loss.item() == pytest.approx(batch["loss"], abs=2e-4)
        for name, weight in official.model.named_parameters():
            assert weight.grad.norm().item() == pytest.approx(batch["gradient_norms"][name], rel=1e-3), name
    official.model.zero_grad()


def random_model() -> ChatGLMForConditionalGeneration:
    return ChatGLMForConditionalGeneration(tiny_model(tiny_config(64, context=32)))


IDS = torch.tensor([[3, 14, 15, 9, 2, 6], [5, 35, 8, 9, 7, 9]])


def test_a_past_continues_without_positions() -> None:
    """The official code starts again from position 0 here."""
    model = random_model()
    past = model(IDS[:, :4]).past_key_values
    torch.testing.assert_close(model(IDS[:, 4:], past_key_values=past).logits, model(IDS).logits[:, 4:])
    assert past[0][0].shape == (4, 2, 2, 8)


def test_what_is_asked_for_and_what_is_not() -> None:
    model = random_model()
    full = model(IDS, labels=IDS, output_hidden_states=True)
    assert full.loss.dim() == 0
    assert [s.shape for s in full.hidden_states] == [(6, 2, 32)] * 3
    assert full["logits"] is full.logits is full[1]
    torch.testing.assert_close(model(IDS, return_last_logit=True).logits, full.logits[:, -1:])
    bare = model(IDS, use_cache=False)
    assert bare.past_key_values is bare.hidden_states is bare.loss is None
    assert len(bare.to_tuple()) == 1
    logits, past = model(IDS, return_dict=False)
    assert torch.equal(logits, full.logits)
    assert len(past) == 2
    assert torch.equal(model.forward(IDS).logits, full.logits)


def test_a_loss_has_the_dtype_of_the_model() -> None:
    assert random_model().bfloat16()(IDS, labels=IDS).loss.dtype == torch.bfloat16


def test_padding_is_not_seen() -> None:
    model = random_model()
    padded = torch.cat((torch.zeros(2, 3, dtype=torch.long), IDS), dim=1)
    mask = (torch.arange(9) >= 3).long().expand(2, -1)
    positions = (torch.arange(9) - 3).clamp(min=0).expand(2, -1)
    logits = model(padded, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(logits[:, 3:], model(IDS).logits)


def test_a_prefix_stays_in_the_past() -> None:
    network = tiny_model(tiny_config(64, pre_seq_len=3))
    model = ChatGLMForConditionalGeneration(network)
    past = model(IDS[:, :4]).past_key_values
    assert past[0][0].shape == (7, 2, 2, 8)
    mask = torch.ones(2, 6, dtype=torch.long)
    mask[0, 0] = 0
    whole = model(IDS, attention_mask=mask).logits
    past = model(IDS[:, :4], attention_mask=mask[:, :4]).past_key_values
    torch.testing.assert_close(model(IDS[:, 4:], attention_mask=mask, past_key_values=past).logits, whole[:, 4:])


@pytest.mark.parametrize(
    ("arguments", "position"),
    [
        ({"input_ids": torch.ones(1, 33, dtype=torch.long)}, 32),
        ({"input_ids": IDS, "position_ids": torch.arange(100, 106)[None]}, 105),
    ],
)
def test_a_position_beyond_the_context_is_said(arguments: dict[str, Tensor], position: int) -> None:
    with pytest.raises(ContextLengthError, match=f"position {position} is beyond the context of 32 tokens"):
        random_model()(**arguments)


def classifier(tmp_path: Path, **config: Any) -> ChatGLMForSequenceClassification:
    head = golden_tensors("seqcls.safetensors")
    official = json.loads((GOLDEN / "tiny-chat/config.json").read_text(encoding="utf-8"))
    network = AutoModel.from_pretrained(GOLDEN / "tiny-chat", device="cpu", torch_dtype="float16")
    weights = dict(network.state_dict())
    weights |= {name: tensor for name, tensor in head.items() if name.startswith("classifier_head")}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({**official, "num_labels": 3, **config}))
    return AutoModelForSequenceClassification.from_pretrained(
        tmp_path, trust_remote_code=True, device="cpu", torch_dtype=torch.float32
    )


@needs_golden
def test_official_classification(tmp_path: Path) -> None:
    model, golden = classifier(tmp_path).eval(), golden_json("seqcls.json")
    expected = golden_tensors("seqcls.safetensors")
    for name, inputs in golden["inputs"].items():
        logits = model(**inputs_of(inputs)).logits
        torch.testing.assert_close(logits, expected[f"{name}.logits"], rtol=0, atol=2e-4)
    batch = inputs_of(golden["inputs"]["batch"])
    for case in golden["losses"]:
        named = classifier(tmp_path, problem_type=case["problem_type"])
        labels = torch.tensor(case["labels"])
        assert named(**batch, labels=labels).loss.item() == pytest.approx(case["loss"], abs=2e-4)
        if case["problem_type"] != "regression":  # without a problem_type the labels say what they are
            assert model(**batch, labels=labels).loss.item() == pytest.approx(case["loss"], abs=2e-4)
