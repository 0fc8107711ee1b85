"""Layers quantised in groups, and whole models of them: what they compute, and what they survive."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chatglm3.errors import AdapterError, CheckpointError
from chatglm3.kernels import native
from chatglm3.kernels.layout import dequantize
from chatglm3.model.adapters import load_adapter
from chatglm3.model.checkpoint import load_model, save_model
from chatglm3.model.linear import Grouped, GroupedEmbedding, GroupedLinear, unpack_int4
from chatglm3.model.lora import LoraLinear
from chatglm3.model.loss import causal_lm_loss
from chatglm3.model.quantization import Quantization
from chatglm3.model.quantize import group_official, quantize_linears
from chatglm3.model.transformer import ChatGLMModel
from golden import GOLDEN, golden_json, golden_tensors, needs_golden
from model.damage import change_json, change_tensors
from model.reference import TOLERANCE
from model.small import CONFIG, logits_of, save_large_model
from tiny_model import tiny_model

IDS = torch.tensor([[3, 4, 5, 6]])


@pytest.fixture(autouse=True)
def torch_products(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The products of torch, which round nothing but the weights."""
    monkeypatch.setenv("CHATGLM3_KERNELS", "torch")
    native.reset()
    yield
    monkeypatch.undo()
    native.reset()


@pytest.fixture(params=[4, 8])
def grouped(request: pytest.FixtureRequest, saved: Path) -> ChatGLMModel:
    return load_model(saved, device="cpu", quantize=request.param)


def dequantized(model: ChatGLMModel) -> ChatGLMModel:
    """A model of floating-point numbers with the weights of `model` multiplied out."""
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith("_scale")}
    for name, module in model.named_modules():
        if isinstance(module, Grouped):
            state[f"{name}.weight"] = dequantize(module.packed, torch.float32)
    plain = ChatGLMModel(replace(model.config, quantization=None))
    plain.load_state_dict(state)
    return plain.requires_grad_(False).eval()


def test_a_model_in_groups_computes_with_the_weights_it_stands_for(grouped: ChatGLMModel) -> None:
    embedding = grouped.transformer.embedding.word_embeddings
    assert isinstance(embedding, GroupedEmbedding) and embedding.bits == 8
    torch.testing.assert_close(logits_of(grouped), logits_of(dequantized(grouped)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_change_of_dtype_changes_the_activations_only(grouped: ChatGLMModel, dtype: torch.dtype) -> None:
    before = {name: tensor.clone() for name, tensor in grouped.state_dict().items()}
    full = logits_of(grouped)
    grouped.to(dtype)
    assert grouped.dtype == dtype
    for name, module in grouped.named_modules():
        if isinstance(module, Grouped):
            for kind in ("weight", "weight_scale", "row_scale"):
                assert torch.equal(module.get_buffer(kind), before[f"{name}.{kind}"])
    logits = logits_of(grouped)
    assert logits.dtype == dtype
    assert (logits - full).abs().max() < 0.1 * full.abs().max()


def test_a_lora_update_goes_beside_it_and_is_not_merged(grouped: ChatGLMModel) -> None:
    before, attention = logits_of(grouped), grouped.blocks[0].self_attention
    base = attention.query_key_value
    assert isinstance(base, GroupedLinear)
    attention.query_key_value = LoraLinear(base, torch.randn(2, 32), torch.randn(64, 2), 0.5)
    grouped.half().float()
    assert not torch.allclose(logits_of(grouped), before)
    with pytest.raises(AdapterError, match="merge first, then quantise"):
        attention.query_key_value.merged()


def test_a_prefix_works_beside_it(grouped: ChatGLMModel, tmp_path: Path) -> None:
    before = logits_of(grouped)
    width = CONFIG.num_layers * 2 * CONFIG.multi_query_group_num * CONFIG.kv_channels
    torch.save({"prefix_encoder.embedding.weight": torch.randn(3, width)}, tmp_path / "pytorch_model.bin")
    adapter = load_adapter(grouped, tmp_path)
    assert not torch.allclose(logits_of(grouped), before)
    adapter.unload()
    assert torch.equal(logits_of(grouped), before)


def test_gradients_reach_an_update_through_it(grouped: ChatGLMModel) -> None:
    mlp = grouped.blocks[0].mlp
    mlp.dense_h_to_4h = LoraLinear(mlp.dense_h_to_4h, torch.randn(2, 32), torch.randn(96, 2), 0.5)
    mlp.dense_h_to_4h.lora_A.requires_grad_(True)
    causal_lm_loss(grouped(IDS).logits, IDS).backward()
    assert mlp.dense_h_to_4h.lora_A.grad is not None and mlp.dense_h_to_4h.lora_A.grad.abs().sum() > 0


def test_a_model_in_groups_is_not_quantised_again(grouped: ChatGLMModel) -> None:
    with pytest.raises(CheckpointError, match=r"quantised to \d bits already"):
        quantize_linears(grouped, 8)


@pytest.mark.parametrize("bits", [4, 8])
def test_official_layers_in_groups_are_integer_times_scale(bits: int) -> None:
    model = tiny_model(CONFIG)
    quantize_linears(model, bits)
    official = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = logits_of(model)
    group_official(model)
    assert model.config.quantization == Quantization(bits, 32, 16, 16)
    for name, module in model.named_modules():
        if isinstance(module, GroupedLinear):
            integers = official[f"{name}.weight"]
            integers = (integers if bits == 8 else unpack_int4(integers)).float()
            exact = integers * official[f"{name}.weight_scale"].float()[:, None]
            assert torch.equal(dequantize(module.packed, torch.float32), exact)
    assert not torch.equal(logits_of(model), before)  # fp16 has rounded the official products
    torch.testing.assert_close(logits_of(model), before, rtol=0, atol=0.1)


@needs_golden
@pytest.mark.parametrize("name", ["int8-small", "int4-small"])
def test_official_checkpoints_in_groups_are_near_the_official_logits(name: str) -> None:
    entry = next(e for e in golden_json("quantized.json")["entries"] if str(e.get("checkpoint", "")).endswith(name))
    model = load_model(GOLDEN / "quantized" / name, device="cpu", dtype="float32")
    group_official(model)
    expected = golden_tensors("quantized.safetensors")[f"{name}.logits"]
    logits = model(torch.tensor(entry["input_ids"])).logits  # the official code rounds its weights to fp16
    torch.testing.assert_close(logits, expected, rtol=0, atol=TOLERANCE[torch.float16] / 5)


def test_official_layers_in_groups_are_saved_and_loaded(tmp_path: Path) -> None:
    model = tiny_model(CONFIG)
    quantize_linears(model, 4)
    group_official(model)
    save_model(model, tmp_path)
    again = load_model(tmp_path, device="cpu", dtype="float32")
    assert again.config == replace(model.config, torch_dtype="float32")
    assert torch.equal(logits_of(again), logits_of(model))


def test_saved_and_loaded_bit_for_bit(grouped: ChatGLMModel, tmp_path: Path) -> None:
    save_model(grouped, tmp_path, max_shard_bytes=30_000)
    again = load_model(tmp_path, device="cpu", dtype="float32")
    found = again.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in grouped.state_dict().items())
    assert len(list(tmp_path.glob("*.safetensors"))) > 1


def mapped_bytes(file: Path) -> list[range]:
    """The addresses at which a file is mapped."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(file))]
    return [range(*(int(end, 16) for end in line[0].split("-"))) for line in lines]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads the maps of the process")
def test_integers_stay_in_the_mapped_file_at_aligned_addresses(grouped: ChatGLMModel, tmp_path: Path) -> None:
    save_model(grouped, tmp_path)
    again = load_model(tmp_path, device="cpu")
    places = mapped_bytes(tmp_path / "model.safetensors")
    layers = [module for module in again.modules() if isinstance(module, Grouped)]
    assert len(layers) == 4 * CONFIG.num_layers + 2
    for layer in layers:
        assert all(any(t.data_ptr() in place for place in places) for t in (layer.weight, layer.weight_scale))
        assert not any(layer.row_scale.data_ptr() in place for place in places)
        assert layer.weight.data_ptr() % 64 == 0


def _refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load_model(folder, device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


QKV = "transformer.encoder.layers.0.self_attention.query_key_value"


def test_damaged_files_are_refused(grouped: ChatGLMModel, tmp_path: Path) -> None:
    def damaged(name: str) -> Path:
        return Path(shutil.copytree(tmp_path / "whole", tmp_path / name))

    save_model(grouped, tmp_path / "whole")
    weights = "model.safetensors"
    for change, words in (
        (lambda t: t.pop(f"{QKV}.row_scale"), f"1 missing tensor(s): {QKV}.row_scale"),
        (lambda t: t.update({f"{QKV}.weight_scale": t[f"{QKV}.weight_scale"][:, :1, :8].clone()}), "1 misshapen"),
        (lambda t: t.update({f"{QKV}.weight": t[f"{QKV}.weight"].to(torch.int8)}), "1 wrongly typed"),
        (lambda t: t[f"{QKV}.row_scale"].fill_(math.nan), f"{QKV}.row_scale holds NaN"),
        (lambda t: t[f"{QKV}.row_scale"].view(-1)[5:6].fill_(math.inf), f"{QKV}.row_scale holds NaN or infinite"),
    ):
        folder = damaged(f"damaged-{len(list(tmp_path.iterdir()))}")
        change_tensors(folder / weights, change)
        assert words in _refusal(folder)
    folder = damaged("short")
    with (folder / weights).open("r+b") as file:
        file.truncate((folder / weights).stat().st_size - 100)
    assert "truncated or corrupt" in _refusal(folder)
    for key, value in (("bits", 12 - grouped.blocks[0].mlp.dense_4h_to_h.bits), ("group_size", 64), ("output_bits", 4)):
        folder = damaged(f"edited-{key}")
        change_json(folder / "config.json", lambda data, k=key, v=value: data["quantization_config"].update({k: v}))
        assert "do not fit config.json" in _refusal(folder)


def test_row_scales_in_another_dtype_become_float32(grouped: ChatGLMModel, tmp_path: Path) -> None:
    save_model(grouped, tmp_path)
    name = f"{QKV}.row_scale"
    change_tensors(tmp_path / "model.safetensors", lambda tensors: tensors.update({name: tensors[name].double()}))
    again = load_model(tmp_path, device="cpu").state_dict()[name]
    assert again.dtype == torch.float32 and torch.equal(again, grouped.state_dict()[name])


def test_weights_are_quantised_alike_from_pieces_and_from_bin_files(
    saved: Path, bin_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = load_model(saved, device="cpu", quantize=4).state_dict()
    monkeypatch.setattr("chatglm3.model.shards._CHUNK_BYTES", 2000)
    for folder in (saved, bin_folder):
        pieces = load_model(folder, device="cpu", quantize=4).state_dict()
        assert all(torch.equal(tensor, pieces[name]) for name, tensor in whole.items())


_PEAK = """
import sys
from chatglm3.model import shards
from chatglm3.model.checkpoint import load_model
shards._CHUNK_BYTES = 2 << 20
def peak():
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
load_model(sys.argv[1], device="cpu", quantize=4)
before = peak()
model = load_model(sys.argv[2], device="cpu", quantize=4)
print(peak() - before, sum(t.nbytes for t in model.state_dict().values()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_quantising_while_loading_needs_little_more_memory_than_the_result(
    layout: str, saved: Path, tmp_path: Path
) -> None:
    unquantised = save_large_model(tmp_path, layout)
    run = subprocess.run(
        [sys.executable, "-c", _PEAK, str(saved), str(tmp_path)], capture_output=True, text=True, check=True
    )
    grown, resident = map(int, run.stdout.split())
    assert resident < 0.52 * unquantised
    assert grown < resident + (40 << 20)
