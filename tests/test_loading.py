"""`load`: what it makes of a folder, and what it says first of one that is no ChatGLM3."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import chatglm3
from chatglm3.errors import CheckpointError, ContextLengthError, DeviceError, DownloadError, TokenizerError
from chatglm3.kernels.layout import dequantize
from chatglm3.model.checkpoint import save_model
from chatglm3.model.linear import GroupedLinear, unpack_int4
from chatglm3.tokenizer import Tokenizer
from golden import GOLDEN, needs_golden
from tiny_model import tiny_config, tiny_model


@pytest.fixture
def folder(tmp_path: Path, tiny_tokenizer_dir: Path, tiny_tokenizer: Tokenizer) -> Path:
    """A whole model: weights, config and tokenizer."""
    save_model(tiny_model(tiny_config(tiny_tokenizer.vocab_size)), tmp_path)
    shutil.copy(tiny_tokenizer_dir / "tokenizer.model", tmp_path)
    return tmp_path


def test_a_folder_answers(folder: Path) -> None:
    with chatglm3.load(folder) as glm:
        assert glm.chat("你好", temperature=0, max_new_tokens=3).usage.completion_tokens <= 3
        assert glm.capabilities.chat


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_are_quantised_on_the_way_in(folder: Path, bits: int) -> None:
    with chatglm3.load(folder, quantize=bits, dtype="float32") as glm:
        layers = (glm.model.blocks[0].mlp.dense_4h_to_h, glm.model.transformer.output_layer)
        assert [layer.bits for layer in layers if isinstance(layer, GroupedLinear)] == [bits, 8]
        assert str(glm.model.dtype) == "torch.float32"
        assert glm.chat("你好", temperature=0, max_new_tokens=3).usage.completion_tokens <= 3


@needs_golden
@pytest.mark.parametrize("bits", [8, 4])
def test_official_integers_are_taken_over_as_they_are(bits: int, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN / f"quantized/int{bits}-small", tmp_path / "model")
    shutil.copy(GOLDEN / "tiny-chat/tokenizer.model", tmp_path / "model")
    stored = load_file(tmp_path / "model/model.safetensors")
    with chatglm3.load(tmp_path / "model", device="cpu") as glm:
        layers = {name: module for name, module in glm.model.named_modules() if isinstance(module, GroupedLinear)}
        assert len(layers) == 4 * glm.model.config.num_layers
        for name, layer in layers.items():
            integers = stored[f"{name}.weight"]
            integers = (integers if bits == 8 else unpack_int4(integers)).float()
            exact = integers * stored[f"{name}.weight_scale"].float()[:, None]
            assert torch.equal(dequantize(layer.packed, torch.float32), exact)


@pytest.mark.parametrize(("bits", "message"), [(3, "bits must be 4 or 8, not 3"), (4, "quantised to 8 bits already")])
def test_what_cannot_be_quantised_is_said_before_a_weight_is_read(folder: Path, bits: int, message: str) -> None:
    if bits == 4:
        config = json.loads((folder / "config.json").read_text()) | {"quantization_bit": 8}
        (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        chatglm3.load(folder, quantize=bits)


def test_the_context_can_be_made_shorter_only(folder: Path) -> None:
    with chatglm3.load(folder, max_context=100) as glm, pytest.raises(ContextLengthError, match="context of 100"):
        glm.chat("长" * 300)
    for wrong in (0, 10**6):
        with pytest.raises(ContextLengthError, match="max_context"):
            chatglm3.load(folder, max_context=wrong)


def test_a_folder_without_a_model_is_named_so(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        chatglm3.load(tmp_path)


def test_another_family_is_named_before_its_tokenizer_is_read(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text()) | {"padded_vocab_size": 151552}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.model").write_bytes(b"IQ== 0\n")
    with pytest.raises(CheckpointError, match="GLM-4"):
        chatglm3.load(folder)


def test_a_missing_tokenizer_is_found_before_the_weights_are_read(folder: Path) -> None:
    (folder / "tokenizer.model").unlink()
    (folder / "model.safetensors").unlink()
    with pytest.raises(TokenizerError, match=r"tokenizer\.model cannot be read"):
        chatglm3.load(folder)


def test_an_unknown_name_or_device_is_one_line(folder: Path) -> None:
    with pytest.raises(DownloadError) as unknown:
        chatglm3.load("nanno")
    with pytest.raises(DeviceError) as device:
        chatglm3.load(folder, device="tpu")
    assert "\n" not in str(unknown.value) + str(device.value)
