"""The official int8 and int4 layouts: nibble order, de-quantised weights, whole checkpoints."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from chatglm3.model.checkpoint import load_model
from chatglm3.model.linear import QuantizedLinear, unpack_int4
from chatglm3.model.transformer import ChatGLMModel
from golden import GOLDEN, golden_json, golden_tensors, needs_golden
from model.reference import TOLERANCE, assert_logits, close, inputs_of

JSON = golden_json("quantized.json")
ENTRIES = JSON.get("entries", ())
SMALL = [entry for entry in ENTRIES if "checkpoint" in entry]
ENCODERS = [entry for entry in ENTRIES if "weights" in entry]
LAYERS = {
    "query_key_value": "self_attention",
    "dense": "self_attention",
    "dense_h_to_4h": "mlp",
    "dense_4h_to_h": "mlp",
}


@pytest.fixture(scope="module")
def quantized() -> dict[str, Tensor]:
    return golden_tensors("quantized.safetensors")


@pytest.fixture(scope="module", params=ENCODERS, ids=lambda entry: f"int{entry['bits']}")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete quantised checkpoint: the quantised encoder with the tables of tiny-chat."""
    path = tmp_path_factory.mktemp("quantized") / f"int{request.param['bits']}"
    path.mkdir()
    shutil.copy(GOLDEN / request.param["config"], path / "config.json")
    tables = {}
    for shard in sorted((GOLDEN / "tiny-chat").glob("*.safetensors")):
        tables.update({name: tensor for name, tensor in load_file(shard).items() if ".encoder." not in name})
    save_file({**tables, **load_file(GOLDEN / request.param["weights"])}, path / "model.safetensors")
    return path


@needs_golden
def test_the_high_nibble_comes_first() -> None:
    nibbles = JSON["nibbles"]
    pairs = unpack_int4(torch.tensor(nibbles["byte_as_int8"], dtype=torch.int8)[:, None])
    assert pairs[:, 0].tolist() == nibbles["element_2j"]
    assert pairs[:, 1].tolist() == nibbles["element_2j_plus_1"]


@needs_golden
def test_layers_dequantise_and_compute_as_the_official_ones(folder: Path, quantized: dict[str, Tensor]) -> None:
    block = load_model(folder, device="cpu", dtype="float32").blocks[0]
    for name, parent in LAYERS.items():
        layer = block.get_submodule(f"{parent}.{name}")
        assert isinstance(layer, QuantizedLinear)
        wanted = f"{folder.name}.layer0.{name}"
        assert torch.equal(layer.dequantize(torch.float16), quantized[f"{wanted}.dequantised"])
        close(layer(quantized[f"{wanted}.input"]), quantized[f"{wanted}.output"], 2e-4)


@needs_golden
@pytest.mark.parametrize("case", ["single", "batch"])
def test_quantised_logits_are_the_official_ones(case: str, folder: Path, quantized: dict[str, Tensor]) -> None:
    inputs = inputs_of(JSON["inputs"][case])
    model = load_model(folder, device="cpu", dtype="float32")
    assert_logits(model(**inputs).logits, quantized, f"{folder.name}.{case}", inputs["key_mask"])


@needs_golden
def test_quantised_float16_logits_are_near_the_official_ones(folder: Path, quantized: dict[str, Tensor]) -> None:
    model = load_model(folder, device="cpu", dtype="float16")
    logits = model(**inputs_of(JSON["inputs"]["single"])).logits
    assert_logits(logits, quantized, f"{folder.name}.single_float16", tolerance=TOLERANCE[torch.float16])


@needs_golden
@pytest.mark.parametrize("entry", SMALL, ids=lambda entry: Path(entry["checkpoint"]).name)
def test_small_quantised_checkpoints_load_and_compute(entry: dict[str, object], quantized: dict[str, Tensor]) -> None:
    path = GOLDEN / str(entry["checkpoint"])
    ids = torch.tensor(entry["input_ids"])
    logits = load_model(path, device="cpu", dtype="float32")(ids).logits
    close(logits, quantized[f"{path.name}.logits"], 2e-4)
    half = load_model(path, device="cpu", dtype="float16")(ids).logits
    close(half, quantized[f"{path.name}.logits_float16"], TOLERANCE[torch.float16])


def quantized_layer() -> QuantizedLinear:
    torch.manual_seed(0)
    layer = QuantizedLinear(8, 4, bits=8, bias=True)
    layer.weight = torch.randint(-127, 128, (4, 8), dtype=torch.int8)
    layer.weight_scale = torch.rand(4).half()
    layer.bias = torch.nn.Parameter(torch.rand(4).half())
    return layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_change_of_dtype_keeps_the_stored_scale(dtype: torch.dtype) -> None:
    layer = quantized_layer()
    scale, weight = layer.weight_scale.clone(), layer.dequantize(torch.float32)
    layer.to(dtype)
    assert layer.weight_scale.dtype == torch.float16
    assert torch.equal(layer.weight_scale, scale)
    assert torch.equal(layer.dequantize(torch.float32), weight)
    assert layer.bias is not None
    assert layer.bias.dtype == dtype


@needs_golden
def test_loading_keeps_integers_and_scales_as_stored() -> None:
    stored = load_file(GOLDEN / "quantized" / "int4-small" / "model.safetensors")
    model: ChatGLMModel = load_model(GOLDEN / "quantized" / "int4-small", device="cpu", dtype="float32")
    for name, tensor in model.state_dict().items():
        if name.endswith(".weight_scale") or tensor.dtype == torch.int8:
            assert torch.equal(tensor, stored[name])
            assert tensor.dtype == stored[name].dtype
        else:
            assert tensor.dtype == torch.float32
