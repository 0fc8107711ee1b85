"""from_pretrained, and where and in which dtype a model is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from chatglm3.compat import AutoConfig, AutoModel, AutoTokenizer
from chatglm3.errors import CheckpointError, DeviceError, DownloadError
from chatglm3.model.linear import QuantizedLinear
from golden import GOLDEN, needs_golden
from taught import GREETING, Loaded

ON_CPU_ALONE = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def greets(model: Any, tokenizer: Any) -> bool:
    return bool(model.chat(tokenizer, "你好", do_sample=False)[0] == GREETING[1]["content"])


@pytest.mark.parametrize(
    ("arguments", "dtype"),
    [
        ({}, torch.float32),
        ({"device": "cpu"}, torch.float32),
        ({"device": torch.device("cpu"), "torch_dtype": "bfloat16"}, torch.bfloat16),
        ({"device_map": "cpu", "torch_dtype": torch.float16}, torch.float16),
        ({"device_map": {"": "cpu"}, "torch_dtype": "auto"}, torch.float32),
    ],
)
@ON_CPU_ALONE
def test_arguments_are_honoured(arguments: dict[str, Any], dtype: torch.dtype, taught_dir: Path) -> None:
    model = AutoModel.from_pretrained(taught_dir, trust_remote_code=True, **arguments)
    assert (model.dtype, model.device.type) == (dtype, "cpu")
    assert all(weight.requires_grad for weight in model.parameters())
    assert greets(model, AutoTokenizer.from_pretrained(taught_dir))


@pytest.mark.parametrize("bits", [8, 4])
def test_loading_quantised(bits: int, taught_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(taught_dir)
    arguments: dict[str, Any] = {f"load_in_{bits}bit": True}
    model = AutoModel.from_pretrained(taught_dir, device="cpu", **arguments)
    assert model.dtype == torch.float32
    assert sum(isinstance(module, QuantizedLinear) for module in model.modules()) == 8
    assert model.config.quantization_bit == bits
    assert isinstance(model.chat(tokenizer, "你好", max_new_tokens=4)[0], str | dict)
    if bits == 8:
        assert greets(model, tokenizer)


@needs_golden
def test_loading_quantised_gives_the_official_integers() -> None:
    model = AutoModel.from_pretrained(GOLDEN / "tiny-chat", device="cpu", torch_dtype="bfloat16", load_in_4bit=True)
    stored = load_file(GOLDEN / "quantized/int4/encoder.safetensors")
    ours = model.state_dict()
    assert all(torch.equal(ours[n], t) for n, t in stored.items() if n.endswith(("dense.weight", "weight_scale")))
    assert model.dtype == torch.bfloat16


@ON_CPU_ALONE
def test_conversions_chain(taught: Loaded) -> None:
    model = taught.model
    assert model.float().eval().cpu().bfloat16().requires_grad_(False).train().eval() is model
    assert model.dtype == torch.bfloat16
    assert greets(model, taught.tokenizer)
    assert greets(model.float(), taught.tokenizer)  # nothing that was computed in bfloat16 is used again
    assert model.to("cpu", torch.float16).dtype == torch.float16
    assert model.to(device="cpu", dtype=torch.float32).dtype == torch.float32
    assert greets(model.quantize(8), taught.tokenizer)
    assert model.bfloat16().transformer.encoder.layers[0].self_attention.dense.weight_scale.dtype == torch.float16


@ON_CPU_ALONE
def test_half_on_a_cpu_says_that_it_is_not_done(taught: Loaded) -> None:
    with pytest.warns(UserWarning, match=r"half\(\) is not done on a CPU.*the model stays in float32"):
        assert taught.model.half() is taught.model
    assert taught.model.dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.cuda(), DeviceError, "device 'cuda' does not exist"),
        (lambda m: m.cuda(1), DeviceError, "device 'cuda:1' does not exist"),
        (lambda m: m.to("gpu"), DeviceError, "device 'gpu' is unknown"),
        (lambda m: m.to(torch.int8), DeviceError, "dtype torch.int8 is not supported"),
        (lambda m: m.quantize(5), CheckpointError, "quantisation to 5 bits does not exist"),
        (lambda m: m.quantize(8).quantize(4), CheckpointError, "the model is quantised to 8 bits already"),
    ],
)
@ON_CPU_ALONE
def test_what_cannot_be_done_is_said(
    call: Callable[[Any], Any], error: type[Exception], message: str, taught: Loaded
) -> None:
    with pytest.raises(error, match=message):
        call(taught.model)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"attn_implementation": "eager"}, TypeError, "attn_implementation"),
        ({"device": "cpu", "device_map": "auto"}, DeviceError, "device and device_map are both given"),
        ({"device_map": {"transformer": 0}}, DeviceError, "a device_map of single layers is not supported"),
        ({"load_in_8bit": True, "load_in_4bit": True}, CheckpointError, "are both given; give one of them"),
        ({"torch_dtype": "int8"}, DeviceError, "dtype int8 is not supported"),
        ({"device": 7}, DeviceError, "device 'cuda:7' does not exist"),
    ],
)
def test_wrong_arguments_are_named(
    arguments: dict[str, Any], error: type[Exception], message: str, taught_dir: Path
) -> None:
    with pytest.raises(error, match=message):
        AutoModel.from_pretrained(taught_dir, **arguments)


def test_a_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(DownloadError, match="no such folder"):
        AutoModel.from_pretrained("./no/such/folder", trust_remote_code=True)


def test_the_config_has_the_official_names(taught: Loaded, taught_dir: Path) -> None:
    config = AutoConfig.from_pretrained(taught_dir, trust_remote_code=True)
    assert (config.seq_length, config.num_layers, config.model_type) == (512, 2, "chatglm")
    assert config.vocab_size == config.padded_vocab_size == taught.model.config.vocab_size
    assert config.to_dict() == taught.model.config.to_dict()
    with pytest.raises(AttributeError, match=r"config.json has no 'max_length'"):
        _ = config.max_length
    with pytest.raises(AttributeError):
        config.use_cache = False


def test_the_model_is_a_torch_module_to_look_at(taught: Loaded) -> None:
    names = [name for name, _ in taught.model.named_parameters()]
    assert "transformer.embedding.word_embeddings.weight" in names
    assert taught.model.transformer.output_layer.out_features == taught.model.config.padded_vocab_size
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = taught.model.no_such_thing


def test_saving(taught: Loaded, tmp_path: Path) -> None:
    taught.model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, device="cpu")  # without a tokenizer beside it
    assert greets(again, taught.tokenizer)


def test_importing_it_needs_no_transformers() -> None:
    code = "import sys, chatglm3.compat; print('transformers' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
