"""`load`: what it makes of a folder, and what it says first of one that is no ChatGLM3."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import chatglm3
from chatglm3.errors import CheckpointError, ContextLengthError, DeviceError, DownloadError, TokenizerError
from chatglm3.model.checkpoint import save_model
from chatglm3.model.linear import QuantizedLinear
from chatglm3.tokenizer import Tokenizer
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
        assert isinstance(glm.model.blocks[0].mlp.dense_4h_to_h, QuantizedLinear)
        assert str(glm.model.dtype) == "torch.float32"
        assert glm.chat("你好", temperature=0, max_new_tokens=3).usage.completion_tokens <= 3


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
