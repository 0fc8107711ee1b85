from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from chatglm3.errors import CheckpointError
from chatglm3.model.checkpoint import load_model, save_model
from chatglm3.model.config import ModelConfig
from chatglm3.model.linear import QuantizedLinear, unpack_int4
from chatglm3.model.lora import LoraLinear
from chatglm3.model.quantize import pack_int4, quantize_linears, quantize_rows
from chatglm3.model.transformer import ChatGLMModel
from golden import GOLDEN, golden_json, golden_tensors, needs_golden
from tiny_model import tiny_config, tiny_model


@needs_golden
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("bits", [8, 4])
def test_official_weights_give_the_official_integers_and_scales(bits: int, dtype: str) -> None:
    model = load_model(GOLDEN / "tiny-chat", device="cpu", dtype=dtype)
    quantize_linears(model, bits)
    stored = load_file(GOLDEN / f"quantized/int{bits}/encoder.safetensors")
    ours = model.state_dict()
    names = [name for name in stored if "layernorm" not in name]
    assert sum(name.endswith("weight_scale") for name in names) == 4 * 3
    for name in names:
        assert torch.equal(ours[name].to(stored[name].dtype), stored[name]), name
        assert name.endswith("bias") or ours[name].dtype == stored[name].dtype
    config = json.loads((GOLDEN / f"quantized/int{bits}/config.json").read_text(encoding="utf-8"))
    assert model.config == ModelConfig.from_dict({**config, "torch_dtype": model.config.torch_dtype})


@needs_golden
@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_model_computes_the_official_logits(bits: int) -> None:
    model = load_model(GOLDEN / "tiny-chat", device="cpu", dtype="float32")
    quantize_linears(model, bits)
    tensors = golden_tensors("quantized.safetensors")
    inputs = golden_json("quantized.json")["inputs"]["single"]["input_ids"]
    with torch.no_grad():
        logits = model(torch.tensor(inputs)).logits
    expected = tensors[f"int{bits}.single.logits_columns"]
    torch.testing.assert_close(logits[..., tensors["columns"]], expected, rtol=0, atol=2e-4)


def small_model() -> ChatGLMModel:
    return tiny_model(tiny_config(64))


@pytest.mark.parametrize("bits", [8, 4])
def test_a_weight_is_off_by_half_a_step_at_most(bits: int) -> None:
    weight = torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    integers, scale = quantize_rows(weight, bits)
    assert scale.dtype == torch.float16
    assert integers.abs().amax(1).tolist() == [{8: 127, 4: 7}[bits]] * 40
    error = (integers * scale[:, None].float() - weight).abs() / scale[:, None].float()
    assert error.max() < 0.62  # the quotient is rounded to fp16 first: up to 0.6 in the official code as well


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_without_a_usable_scale_stay_in_range(bits: int) -> None:
    weight = torch.tensor([[0.0, 0.0], [3e-8, 1.0e-7], [6e-6, -1e-5]])
    integers, scale = quantize_rows(weight, bits)
    assert torch.isfinite(scale).all()
    assert (integers * scale[:, None].float() - weight).abs().max() < 1e-6 * (8 if bits == 4 else 3)


def test_packing_is_undone_by_unpacking() -> None:
    integers = torch.arange(-7, 8, dtype=torch.int8).repeat(2, 2)
    assert torch.equal(unpack_int4(pack_int4(integers)), integers)


@pytest.mark.parametrize("bits", [8, 4])
def test_only_the_four_layers_change(bits: int) -> None:
    model, before = small_model(), small_model()
    quantize_linears(model, bits)
    quantised = [name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)]
    assert len(quantised) == 4 * model.config.num_layers
    assert isinstance(model.transformer.output_layer, torch.nn.Linear)
    for name, tensor in before.state_dict().items():
        if name.rpartition(".")[0] not in quantised or name.endswith("bias"):
            assert torch.equal(model.state_dict()[name], tensor)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_model_saves_and_loads(bits: int, tmp_path: Path) -> None:
    model = small_model()
    quantize_linears(model, bits)
    save_model(model, tmp_path)
    again = load_model(tmp_path, device="cpu", dtype="float32")
    ids = torch.tensor([[1, 2, 3, 4]])
    assert again.config.quantization_bit == bits
    assert torch.equal(again(ids).logits, model(ids).logits)


def twice(model: ChatGLMModel) -> None:
    quantize_linears(model, 8)
    quantize_linears(model, 4)


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda model: quantize_linears(model, 3), "quantisation to 3 bits does not exist; use 8 or 4"),
        (lambda model: quantize_linears(model, 0), "quantisation to 0 bits does not exist"),
        (twice, "the model is quantised to 8 bits already; load the original weights instead"),
    ],
)
def test_what_cannot_be_done_is_said(attempt: Callable[[ChatGLMModel], None], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        attempt(small_model())


def test_an_odd_layer_is_refused_before_anything_changes() -> None:
    model = tiny_model(ModelConfig.from_dict({**tiny_config(64).to_dict(), "ffn_hidden_size": 47}))
    with pytest.raises(CheckpointError, match="int4 needs an even number of inputs, which dense_4h_to_h has not"):
        quantize_linears(model, 4)
    assert not any(isinstance(module, QuantizedLinear) for module in model.modules())
    quantize_linears(model, 8)


def test_a_lora_update_stays_beside_the_quantised_layer() -> None:
    model, ids = small_model(), torch.tensor([[1, 2, 3, 4]])
    attention = model.blocks[0].self_attention
    a, b = torch.randn(2, 32), torch.randn(64, 2)
    attention.query_key_value = LoraLinear(attention.query_key_value, a, b, 0.5)
    quantize_linears(model, 8)
    assert isinstance(attention.query_key_value, LoraLinear)
    assert isinstance(attention.query_key_value.base, QuantizedLinear)
    with_update = model(ids).logits
    attention.query_key_value = attention.query_key_value.base
    assert not torch.allclose(with_update, model(ids).logits)
