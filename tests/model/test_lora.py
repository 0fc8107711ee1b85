"""LoRA against the official values, and the ways an adapter can be wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import adapter_folders
from chatglm3.errors import AdapterError, CheckpointError
from chatglm3.model.adapters import load_adapter
from chatglm3.model.checkpoint import load_model, save_model
from chatglm3.model.lora import LoraLinear
from chatglm3.model.loss import causal_lm_loss
from chatglm3.model.quantize import quantize_linears
from chatglm3.model.transformer import ChatGLMModel
from golden import GOLDEN, golden_json, golden_tensors, needs_golden
from model.reference import assert_logits, close, inputs_of
from model.small import CONFIG, logits_of, random_model

LORA = golden_json("lora.json")
QKV = "transformer.encoder.layers.0.self_attention.query_key_value"
A, B = (f"base_model.model.{QKV}.{half}.weight" for half in ("lora_A", "lora_B"))
ALL_LAYERS = ("self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h")


@pytest.fixture
def with_lora(tiny_chat: ChatGLMModel) -> Iterator[ChatGLMModel]:
    adapter = load_adapter(tiny_chat, GOLDEN / "lora")
    yield tiny_chat
    adapter.unload()


def lora_folder(
    folder: Path, *, r: int = 2, change: Callable[[dict[str, Tensor]], Any] | None = None, **config: Any
) -> Path:
    """An adapter of the random model for all four linear layers of both blocks."""
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for name, layer in random_model().named_modules():
        if name.endswith(ALL_LAYERS):
            a, b = (
                torch.randn(r, layer.in_features, generator=generator),
                torch.randn(layer.out_features, r, generator=generator),
            )
            tensors[f"base_model.model.{name}.lora_A.weight"] = a / 8
            tensors[f"base_model.model.{name}.lora_B.weight"] = b / 8
    if change is not None:
        change(tensors)
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": r, "lora_alpha": 8, **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def refusal(model: ChatGLMModel, folder: Path) -> str:
    before = logits_of(model)
    with pytest.raises(AdapterError) as caught:
        load_adapter(model, folder)
    assert torch.equal(logits_of(model), before)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@needs_golden
@pytest.mark.parametrize("case", ["single", "batch"])
def test_lora_logits_are_the_official_ones(case: str, with_lora: ChatGLMModel) -> None:
    inputs = inputs_of(LORA["inputs"][case])
    assert_logits(with_lora(**inputs).logits, golden_tensors("lora.safetensors"), case, inputs["key_mask"])


@needs_golden
def test_lora_gradients_are_the_official_ones(with_lora: ChatGLMModel) -> None:
    tensors = golden_tensors("lora.safetensors")
    layers = {name: layer for name, layer in with_lora.named_modules() if isinstance(layer, LoraLinear)}
    weights = {
        f"{name}.{half}": getattr(layer, half) for name, layer in layers.items() for half in ("lora_A", "lora_B")
    }
    for weight in weights.values():
        weight.requires_grad_(True)
    loss = causal_lm_loss(
        with_lora(torch.tensor(LORA["inputs"]["single"]["input_ids"])).logits, torch.tensor(LORA["loss_labels"])
    )
    loss.backward()
    assert loss.item() == pytest.approx(LORA["loss"], abs=2e-4)
    assert sum(weight.numel() for weight in weights.values()) == LORA["trainable_parameters"]
    for name, weight in weights.items():
        close(weight.grad, tensors[f"grad.base_model.model.{name}.weight"], 2e-4)


@needs_golden
def test_a_merged_lora_is_an_ordinary_model_with_the_official_weights(tmp_path: Path) -> None:
    tensors = golden_tensors("lora.safetensors")
    model = load_model(GOLDEN / "tiny-chat", device="cpu", dtype="float32")
    load_adapter(model, GOLDEN / "lora").merge()
    assert not any(isinstance(module, LoraLinear) for module in model.modules())
    close(model.get_parameter(f"{QKV}.weight"), tensors[f"merged.{QKV}.weight"], 1e-6)
    save_model(model, tmp_path)
    inputs = inputs_of(LORA["inputs"]["single"])
    assert_logits(load_model(tmp_path, device="cpu", dtype="float32")(**inputs).logits, tensors, "single")


@needs_golden
def test_unloading_a_lora_gives_back_the_model(tiny_chat: ChatGLMModel) -> None:
    before, names = logits_of(tiny_chat), tiny_chat.state_dict().keys()
    adapter = load_adapter(tiny_chat, GOLDEN / "lora")
    assert not torch.allclose(logits_of(tiny_chat), before)
    adapter.unload()
    assert torch.equal(logits_of(tiny_chat), before)
    assert tiny_chat.state_dict().keys() == names


def test_every_linear_layer_can_be_adapted_and_merged(tmp_path: Path) -> None:
    folder = lora_folder(tmp_path / "lora")
    loaded, merged = random_model(dtype=torch.float32), random_model(dtype=torch.float32)
    adapter = load_adapter(loaded, folder)
    load_adapter(merged, folder).merge()
    assert sum(isinstance(module, LoraLinear) for module in loaded.modules()) == 8
    assert not torch.allclose(logits_of(loaded), logits_of(random_model(dtype=torch.float32)), atol=0.1)
    close(logits_of(merged), logits_of(loaded), 2e-4)
    adapter.unload()
    assert torch.equal(logits_of(loaded), logits_of(random_model(dtype=torch.float32)))


@pytest.mark.parametrize(("config", "scale"), [({}, 4.0), ({"use_rslora": True}, 8 / 2**0.5)])
def test_the_scale_is_alpha_over_r(config: dict[str, Any], scale: float, tmp_path: Path) -> None:
    model = random_model()
    load_adapter(model, lora_folder(tmp_path / "lora", **config))
    layer = model.get_submodule(QKV)
    assert isinstance(layer, LoraLinear)
    assert layer.scale == pytest.approx(scale)


def test_a_lora_works_beside_a_16_bit_and_a_quantised_layer_but_merges_into_no_integers(tmp_path: Path) -> None:
    folder = lora_folder(tmp_path / "lora")
    wanted = random_model(dtype=torch.float32)
    load_adapter(wanted, folder)
    half = random_model(dtype=torch.bfloat16)
    load_adapter(half, folder)
    assert logits_of(half).dtype == torch.bfloat16
    close(logits_of(half), logits_of(wanted), 0.5)
    small = random_model(dtype=torch.float32)
    quantize_linears(small, 8)
    before = logits_of(small)
    adapter = load_adapter(small, folder)
    assert not torch.allclose(logits_of(small), before, atol=0.1)
    with pytest.raises(AdapterError, match="quantise"):
        adapter.merge()
    adapter.unload()
    assert torch.equal(logits_of(small), before)


def test_a_model_with_an_adapter_is_not_saved_as_if_it_had_none(tmp_path: Path) -> None:
    model = random_model()
    adapter = load_adapter(model, lora_folder(tmp_path / "lora"))
    with pytest.raises(CheckpointError, match="merge"):
        save_model(model, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    assert "already" in refusal(model, tmp_path / "lora")
    adapter.merge()
    save_model(model, tmp_path / "saved")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors: tensors.pop(A), "query_key_value has lora_B only"),
        (lambda tensors: tensors.update({A: torch.ones(2, 5)}), "A [2, 5]"),
        (lambda tensors: tensors.update({B: torch.ones(64, 3)}), "B [64, 3]"),
        (lambda tensors: tensors[A][0, :1].fill_(float("nan")), "NaN"),
        (lambda tensors: tensors.update({"base_model.model.lm_head.weight": torch.ones(2)}), "lm_head"),
        (lambda tensors: tensors.update({A.replace("layers.0", "layers.7"): torch.ones(2, 32)}), "layers.7"),
        (lambda tensors: tensors.clear(), "no LoRA tensors"),
        (lambda t: t.update({A: torch.ones(2, 32, dtype=torch.int64)}), "lora_A.weight is stored as torch.int64"),
        (lambda t: t.update({B: t[B].half()}), "A is torch.float32 and B torch.float16, and both must be the same"),
        (lambda t: t.update({A: torch.ones(3, 32), B: torch.ones(t[B].shape[0], 3)}), "are not of the rank r = 2 in"),
        (lambda t: t.update({A: torch.tensor(1.0)}), "which no adapter has"),
        (lambda t: t.update({A: torch.empty(0, 32)}), "which no adapter has"),
    ],
)
def test_lora_tensors_that_do_not_fit_are_named(change: Any, said: str, tmp_path: Path) -> None:
    assert said in refusal(random_model(), lora_folder(tmp_path / "lora", change=change))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"alpha_pattern": {"dense": 3}}, "alpha_pattern"),
        ({"modules_to_save": ["output_layer"]}, "modules_to_save"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"r": None}, "r and lora_alpha"),
        ({"r": 0}, "r and lora_alpha"),
        ({"lora_alpha": "8"}, "r and lora_alpha"),
        ({"lora_alpha": float("inf")}, "lora_alpha must be a finite number, not inf"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be a finite number, not nan"),
        ({"lora_alpha": 10**400}, "lora_alpha must be a finite number"),
        ({"r": 10**400}, "r and lora_alpha"),
        ({"r": 16}, "are not of the rank r = 16 in adapter_config.json"),
        ({"rank_pattern": {"dense": 3}}, "rank_pattern"),
    ],
)
def test_lora_options_that_are_not_supported_are_named(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = lora_folder(tmp_path / "lora")
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**settings, **config}))
    assert said in refusal(random_model(), folder)


def test_an_adapter_of_another_model_is_one_mismatch_and_what_to_do(tmp_path: Path) -> None:
    folder = adapter_folders.lora_folder(tmp_path / "lora", replace(CONFIG, hidden_size=48))
    file, config_file = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    settings = json.loads(config_file.read_text())
    said = refusal(random_model(), folder)
    assert said.startswith(f"{file}: transformer.encoder.layers.0.") and said.count("do not fit a layer from") == 1
    assert said.endswith(", and 7 more; it was trained for another model; give that one as --model")
    config_file.write_text(json.dumps({**settings, "base_model_name_or_path": "zai-org/chatglm3-6b"}))
    assert "it was trained for another model (zai-org/chatglm3-6b); give that one" in refusal(random_model(), folder)


def test_an_adapter_that_fits_may_be_named_for_another_model(tmp_path: Path) -> None:
    load_adapter(random_model(), lora_folder(tmp_path / "lora", base_model_name_or_path="/elsewhere/chatglm3-6b"))


@pytest.mark.parametrize("shard_bytes", [10**9, 10**4])
def test_a_whole_model_is_no_adapter(shard_bytes: int, tmp_path: Path) -> None:
    save_model(random_model(), tmp_path, max_shard_bytes=shard_bytes)
    assert (tmp_path / "model.safetensors").is_file() == (shard_bytes == 10**9)
    assert "this is a whole model and no adapter; use it as --model" in refusal(random_model(), tmp_path)
    assert "no adapter, because there is no such folder" in refusal(random_model(), tmp_path / "nothing")


def test_broken_adapter_folders_are_refused(tmp_path: Path) -> None:
    assert "no adapter" in refusal(random_model(), tmp_path)
    folder = lora_folder(tmp_path / "lora")
    (folder / "adapter_config.json").write_text("{")
    assert "adapter_config.json" in refusal(random_model(), folder)
    (folder / "adapter_config.json").write_text("[]")
    assert "adapter_config.json" in refusal(random_model(), folder)
    (folder / "adapter_config.json").unlink()
    assert "adapter_config.json" in refusal(random_model(), folder)
    lora_folder(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"\0" * 20)
    assert "adapter_model.safetensors" in refusal(random_model(), folder)
