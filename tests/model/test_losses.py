"""Losses, gradients and the classification head against the official values."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from chatglm3.errors import ChatGLMError, CheckpointError
from chatglm3.model.checkpoint import load_classifier, load_model, save_model
from chatglm3.model.classifier import SequenceClassifier
from chatglm3.model.loss import causal_lm_loss, classification_loss
from golden import GOLDEN, golden_json, golden_tensors, needs_golden
from model.reference import close, inputs_of

SEQCLS = golden_json("seqcls.json")
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> SequenceClassifier:
    """The classification head on the tiny checkpoint, written as a checkpoint of its own."""
    folder = tmp_path_factory.mktemp("classifier") / "tiny"
    shutil.copytree(GOLDEN / "tiny-chat", folder, copy_function=shutil.copyfile)
    folder.chmod(0o755)
    head = {n: t for n, t in golden_tensors("seqcls.safetensors").items() if n.startswith("classifier_head")}
    save_file(head, folder / "head.safetensors")
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"].update(dict.fromkeys(head, "head.safetensors"))
    (folder / INDEX).write_text(json.dumps(index))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_labels": SEQCLS["num_labels"]}))
    return load_classifier(folder, device="cpu", dtype="float32")


@needs_golden
@pytest.mark.parametrize("index", range(len(golden_json("training.json").get("batches", ()))))
def test_loss_and_gradients_of_training_batches_are_the_official_ones(index: int) -> None:
    batch = golden_json("training.json")["batches"][index]
    tensors = golden_tensors("training.safetensors")
    model = load_model(GOLDEN / "tiny-chat", device="cpu", dtype="float32").requires_grad_(True)
    loss = causal_lm_loss(model(**inputs_of(batch)).logits, torch.tensor(batch["labels"]))
    loss.backward()
    assert loss.item() == pytest.approx(batch["loss"], abs=2e-4)
    gradients = {name: weight.grad for name, weight in model.named_parameters()}
    for name, norm in batch["gradient_norms"].items():
        gradient = gradients[name]
        assert gradient is not None
        assert gradient.norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-5)
    for name, gradient in gradients.items():
        if f"batch{index}.grad.{name}" in tensors:
            assert gradient is not None
            close(gradient, tensors[f"batch{index}.grad.{name}"], 2e-4)


@needs_golden
@pytest.mark.parametrize("case", ["single", "batch"])
def test_classification_logits_are_the_official_ones(case: str, classifier: SequenceClassifier) -> None:
    logits = classifier.classify(**inputs_of(SEQCLS["inputs"][case]))
    close(logits, golden_tensors("seqcls.safetensors")[f"{case}.logits"], 2e-4)


@needs_golden
@pytest.mark.parametrize("case", SEQCLS.get("losses", ()), ids=lambda case: case["problem_type"])
def test_classification_losses_are_the_official_ones(case: dict[str, Any]) -> None:
    logits = golden_tensors("seqcls.safetensors")["batch.logits"]
    loss = classification_loss(logits, torch.tensor(case["labels"]), case["problem_type"])
    assert loss.item() == pytest.approx(case["loss"], abs=2e-5)


def test_regression_with_one_label_takes_a_number_a_row() -> None:
    assert classification_loss(torch.tensor([[1.0], [3.0]]), torch.tensor([1, 1]), "regression").item() == 2


def test_an_unknown_problem_type_is_refused() -> None:
    with pytest.raises(ChatGLMError, match="problem_type 'ranking'"):
        classification_loss(torch.zeros(1, 2), torch.zeros(1), "ranking")


@needs_golden
def test_a_classifier_is_saved_and_loaded_bit_for_bit(classifier: SequenceClassifier, tmp_path: Path) -> None:
    save_model(classifier, tmp_path)
    again = load_classifier(tmp_path, device="cpu", dtype="float32").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in classifier.state_dict().items())
    with pytest.raises(CheckpointError, match=r"unexpected.*classifier_head"):
        load_model(tmp_path, device="cpu")


def test_a_config_without_labels_is_no_classifier(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="num_labels"):
        load_classifier(saved, device="cpu")


def test_the_loss_ignores_labels_and_is_fp32_for_16_bit_logits() -> None:
    logits = torch.zeros(1, 4, 8, dtype=torch.float16)
    logits[0, 1, 5] = 60_000
    loss = causal_lm_loss(logits, torch.tensor([[3, -100, 5, -100]]))
    assert loss.dtype == torch.float32
    assert loss.item() == 0
