"""What is trained, and the files it is kept in: this package's loader, PEFT and the official kit read them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from chatglm3.errors import AdapterError, CheckpointError, TrainingError
from chatglm3.model.adapters import load_adapter
from chatglm3.model.checkpoint import load_model
from chatglm3.model.config import CHATGLM3_6B
from chatglm3.model.lora import LoraLinear
from chatglm3.model.quantize import quantize_linears
from chatglm3.model.saving import save_model
from chatglm3.model.transformer import ChatGLMModel
from chatglm3.train.batches import pack
from chatglm3.train.config import TrainConfig
from chatglm3.train.data import TrainingRow
from chatglm3.train.dataset import Dataset
from chatglm3.train.methods import load_trained, prepare_model, save_trained, trained_count, trained_weights
from golden import GOLDEN, golden_json, golden_tensors, needs_golden
from tiny_model import tiny_config, tiny_model
from train.runs import VOCABULARY, config_of, gradients, loss_of, random_rows

ALL_LAYERS = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]


def random_model(dtype: torch.dtype = torch.float32) -> ChatGLMModel:
    return tiny_model(tiny_config(VOCABULARY)).to(dtype)


def trained_model(config: TrainConfig, model: ChatGLMModel | None = None) -> ChatGLMModel:
    """A model as after training: what is trained is random."""
    model = model or random_model()
    prepare_model(model, config)
    for weight in trained_weights(model).values():
        torch.nn.init.normal_(weight, std=0.1)
    return model.eval()


def saved(model: ChatGLMModel, config: TrainConfig, folder: Path) -> Path:
    save_trained(model, trained_weights(model), config, folder, folder)
    return folder


@torch.no_grad()
def logits_of(model: ChatGLMModel) -> Tensor:
    logits: Tensor = model(torch.arange(3, 20)[None]).logits
    return logits


def test_the_official_lora_trains_1949696_numbers_of_the_released_model() -> None:
    with torch.device("meta"):
        model = ChatGLMModel(CHATGLM3_6B)
        assert trained_count(config_of(), model) == 1_949_696
    assert {name.rpartition(".")[2] for name in trained_weights(model)} == {"lora_A", "lora_B"}
    with torch.device("meta"):
        prefix = trained_count(config_of(method="ptuning"), ChatGLMModel(CHATGLM3_6B))
        whole = trained_count(config_of(method="full"), ChatGLMModel(CHATGLM3_6B))
    assert (prefix, whole) == (1_835_008, CHATGLM3_6B.parameter_count)


def test_a_new_lora_changes_nothing_and_the_seed_decides_it() -> None:
    before = logits_of(random_model())
    models = [random_model() for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        prepare_model(model, config_of(seed=seed))
        assert torch.equal(logits_of(model.eval()), before)
    first, same, other = ({n: w.data for n, w in trained_weights(model).items()} for model in models)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("targets", [["query_key_value"], ALL_LAYERS])
def test_a_trained_lora_loads_as_an_adapter_and_in_peft(targets: list[str], tmp_path: Path) -> None:
    config = config_of(lora={"targets": targets, "rank": 4, "alpha": 6.0})
    model = trained_model(config)
    folder = saved(model, config, tmp_path / "adapter")
    loaded = random_model()
    load_adapter(loaded, folder)
    assert torch.equal(logits_of(loaded), logits_of(model))
    peft = pytest.importorskip("peft")
    beneath = WithGeneration(model.config)
    beneath.load_state_dict(random_model().state_dict())
    in_peft = peft.PeftModel.from_pretrained(beneath.eval(), str(folder))
    assert torch.allclose(logits_of(in_peft.base_model.model), logits_of(model), atol=1e-5)


class WithGeneration(ChatGLMModel):
    """PEFT asks for this method of a causal language model when it is made, and calls it never here."""

    def prepare_inputs_for_generation(self) -> None:
        raise NotImplementedError


def test_an_adapter_that_peft_made_loads(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=4, lora_alpha=8, target_modules=ALL_LAYERS, lora_dropout=0.1)
    model = peft.get_peft_model(random_model(), settings).eval()
    for weight in trained_weights(model).values():
        torch.nn.init.normal_(weight, std=0.1)
    model.save_pretrained(str(tmp_path))
    loaded = random_model()
    load_adapter(loaded, tmp_path)
    assert torch.allclose(logits_of(loaded), logits_of(model.base_model.model), atol=1e-5)


@pytest.mark.parametrize("projection", [False, True])
def test_a_trained_prefix_loads_as_an_adapter_and_says_what_it_is(projection: bool, tmp_path: Path) -> None:
    config = config_of(method="ptuning", ptuning={"length": 5, "projection": projection})
    model = trained_model(config)
    folder = saved(model, config, tmp_path / "adapter")
    loaded = random_model()
    load_adapter(loaded, folder)
    assert torch.equal(logits_of(loaded), logits_of(model))
    assert not torch.allclose(logits_of(loaded), logits_of(random_model()))
    about = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert (about["peft_type"], about["num_virtual_tokens"], about["prefix_projection"]) == (
        "PREFIX_TUNING",
        5,
        projection,
    )


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("official", [False, True])
def test_lora_trains_on_quantised_weights(bits: int, official: bool, tmp_path: Path) -> None:
    if official:
        model = random_model()
        quantize_linears(model, bits)
    else:
        save_model(random_model(), tmp_path)
        model = load_model(tmp_path, device="cpu", dtype="float32", quantize=bits)
    prepare_model(model, config_of(lora={"targets": ALL_LAYERS, "dropout": 0.0}))
    assert all(weight.dtype == torch.float32 for weight in trained_weights(model).values())
    frozen = {n: t.clone() for n, t in model.state_dict().items() if "lora" not in n}
    batch = pack(random_rows(VOCABULARY, (20, 30)), [0, 1])
    optimizer = torch.optim.Adam(trained_weights(model).values(), lr=0.02)
    losses = []
    for _ in range(8):
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    assert all(torch.equal(tensor, frozen[name]) for name, tensor in model.state_dict().items() if name in frozen)


@pytest.mark.parametrize("method", ["lora", "ptuning"])
def test_what_is_trained_on_16_bit_weights_is_fp32(method: str) -> None:
    model = trained_model(config_of(method=method), random_model(torch.bfloat16))
    loss = loss_of(model, pack(random_rows(VOCABULARY, (20, 30)), [0, 1]))
    loss.backward()
    assert loss.dtype == torch.float32
    assert {gradient.dtype for gradient in gradients(model).values()} == {torch.float32}
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("method", ["lora", "ptuning", "full"])
def test_what_is_saved_comes_back_bit_for_bit(method: str, tmp_path: Path) -> None:
    config = config_of(method=method, ptuning={"length": 5})
    model = trained_model(config)
    folder = saved(model, config, tmp_path)
    again = random_model()
    prepare_model(again, config)
    load_trained(again, config, folder)
    weights = trained_weights(again)
    assert all(torch.equal(weight, weights[name]) for name, weight in trained_weights(model).items())


def test_a_full_model_is_a_checkpoint(tmp_path: Path) -> None:
    config = config_of(method="full")
    model = trained_model(config)
    loaded = load_model(saved(model, config, tmp_path), device="cpu", dtype="float32")
    assert torch.equal(logits_of(loaded), logits_of(model))
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "float32"


def test_weights_of_another_run_are_refused_by_name(tmp_path: Path) -> None:
    config = config_of(lora={"rank": 4})
    folder = saved(trained_model(config), config, tmp_path)
    for changes, words in (
        ({"rank": 2}, r"lora_A is \[4, 32\] where this run has \[2, 32\]"),
        ({"rank": 4, "targets": ALL_LAYERS}, "dense.lora_A is missing"),
    ):
        other = config_of(lora=changes)
        with pytest.raises(CheckpointError, match=words):
            load_trained(trained_model(other), other, folder)
    (folder / "adapter_model.safetensors").write_bytes(b"\0" * 30)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_trained(trained_model(config), config, folder)


def test_models_that_a_method_cannot_have() -> None:
    model = random_model()
    quantize_linears(model, 8)
    with pytest.raises(TrainingError, match="these are quantised; use method=lora"):
        prepare_model(model, config_of(method="full"))
    with pytest.raises(TrainingError, match="has a P-Tuning prefix inside"):
        prepare_model(tiny_model(replace(tiny_config(VOCABULARY), pre_seq_len=3)), config_of())


def test_an_adapter_for_other_layers_is_refused(tmp_path: Path) -> None:
    config = config_of()
    folder = saved(trained_model(config), config, tmp_path)
    with pytest.raises(AdapterError, match=r"layers\.1.*is not a layer of this model"):
        load_adapter(tiny_model(tiny_config(VOCABULARY, layers=1)), folder)


@needs_golden
def test_lora_gradients_of_a_step_are_the_official_ones() -> None:
    lora = golden_json("lora.json")
    tensors = golden_tensors("lora.safetensors")
    config = config_of(lora={"rank": 4, "alpha": 8, "dropout": 0.0})
    model = load_model(GOLDEN / "tiny-chat", device="cpu", dtype="float32")
    prepare_model(model, config)
    load_trained(model, config, GOLDEN / "lora")
    data = golden_rows(lora["inputs"]["single"]["input_ids"], lora["loss_labels"])
    batch = pack(data, [0])
    loss = loss_of(model, batch) / len(batch.targets)
    loss.backward()
    assert loss.item() == pytest.approx(lora["loss"], abs=2e-4)
    found = gradients(model)
    assert sum(gradient.numel() for gradient in found.values()) == lora["trainable_parameters"]
    for name, gradient in found.items():
        assert torch.allclose(gradient, tensors[f"grad.base_model.model.{name}.weight"], atol=2e-4), name


@needs_golden
@pytest.mark.parametrize("variant", golden_json("ptuning.json").get("variants", ()), ids=lambda v: v["name"])
def test_prefix_gradients_of_a_step_are_the_official_ones(variant: dict[str, Any], tmp_path: Path) -> None:
    tensors, name = golden_tensors("ptuning.safetensors"), variant["name"]
    config = config_of(method="ptuning", ptuning={"length": variant["pre_seq_len"], "projection": name == "projection"})
    model = load_model(GOLDEN / "tiny-chat", device="cpu", dtype="float32")
    prepare_model(model, config)
    model.eval()
    for weight_name, weight in trained_weights(model).items():
        weight.data.copy_(tensors[f"{name}.weights.{weight_name}"])
    inputs = golden_json("ptuning.json")["inputs"]["single"]["input_ids"]
    batch = pack(golden_rows(inputs, variant["loss_labels"]), [0])
    loss = loss_of(model, batch) / len(batch.targets)
    loss.backward()
    assert loss.item() == pytest.approx(variant["loss"], abs=2e-4)
    for weight_name, gradient in gradients(model).items():
        assert torch.allclose(gradient, tensors[f"{name}.grad.{weight_name}"], atol=2e-4), weight_name


def golden_rows(input_ids: list[list[int]], labels: list[list[int]]) -> Dataset:
    rows = tuple(TrainingRow(ids, wanted) for ids, wanted in zip(input_ids, labels, strict=True))
    return Dataset("chat", rows, (), tuple(range(1, len(rows) + 1)))


def test_dropout_is_on_while_training_only() -> None:
    model = trained_model(config_of(lora={"dropout": 0.5}))
    layers = [module for module in model.modules() if isinstance(module, LoraLinear)]
    assert len(layers) == 2 and all(layer.dropout == 0.5 for layer in layers)
    quiet = logits_of(model)
    assert torch.equal(logits_of(model), quiet)
    model.train()
    torch.manual_seed(1)
    assert not torch.allclose(logits_of(model), quiet)
