"""P-Tuning v2 prefixes against the official values, and the ways they can be wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from chatglm3.errors import AdapterError
from chatglm3.model.adapters import Adapter, load_adapter
from chatglm3.model.cache import ConcatCache, KVCache
from chatglm3.model.checkpoint import load_model, save_model
from chatglm3.model.loss import causal_lm_loss
from chatglm3.model.transformer import ChatGLMModel
from golden import GOLDEN, golden_json, golden_tensors, needs_golden
from model.reference import assert_logits, close, inputs_of
from model.small import CONFIG, logits_of, random_model

PTUNING = golden_json("ptuning.json")
VARIANTS = PTUNING.get("variants", ())
WIDTH = CONFIG.num_layers * 2 * CONFIG.multi_query_group_num * CONFIG.kv_channels


@pytest.fixture(params=VARIANTS, ids=lambda variant: variant["name"])
def variant(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


@pytest.fixture
def with_prefix(variant: dict[str, Any], tiny_chat: ChatGLMModel, tmp_path: Path) -> Iterator[ChatGLMModel]:
    adapter = load_adapter(tiny_chat, prefix_folder(tmp_path, variant["name"]))
    yield tiny_chat
    adapter.unload()


def prefix_folder(folder: Path, variant: str) -> Path:
    start = f"{variant}.weights."
    tensors = golden_tensors("ptuning.safetensors")
    torch.save(
        {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}, folder / "pytorch_model.bin"
    )
    return folder


@needs_golden
def test_the_prefix_is_the_official_one(variant: dict[str, Any], with_prefix: ChatGLMModel) -> None:
    tensors = golden_tensors("ptuning.safetensors")
    prefix = with_prefix.prefix()
    assert prefix is not None
    assert prefix.shape[2] == variant["pre_seq_len"]
    close(prefix[:, 0], tensors[f"{variant['name']}.prefix_key"].squeeze(2), 2e-5)
    close(prefix[:, 1], tensors[f"{variant['name']}.prefix_value"].squeeze(2), 2e-5)


@needs_golden
@pytest.mark.parametrize("preallocated", [True, False])
def test_prefix_logits_are_the_official_ones(
    preallocated: bool, variant: dict[str, Any], with_prefix: ChatGLMModel
) -> None:
    tensors = golden_tensors("ptuning.safetensors")

    def cache(batch: int) -> KVCache | ConcatCache:
        devices = [block.device for block in with_prefix.blocks]
        if preallocated:
            return KVCache(with_prefix.config, batch, 32, with_prefix.dtype, devices, with_prefix.prefix())
        return with_prefix.new_concat_cache(batch)

    single, batch, step = (inputs_of(PTUNING["inputs"][name]) for name in ("single", "batch", "batch_step0"))
    name = variant["name"]
    assert_logits(with_prefix(**single, cache=cache(1)).logits, tensors, f"{name}.single")
    three = cache(3)
    assert_logits(with_prefix(**batch, cache=three).logits, tensors, f"{name}.batch", batch["key_mask"])
    assert_logits(with_prefix(**step, cache=three).logits, tensors, f"{name}.batch_step0")


@needs_golden
def test_prefix_gradients_are_the_official_ones(variant: dict[str, Any], with_prefix: ChatGLMModel) -> None:
    tensors = golden_tensors("ptuning.safetensors")
    with_prefix.transformer.prefix_encoder.requires_grad_(True)
    logits = with_prefix(torch.tensor(PTUNING["inputs"]["single"]["input_ids"])).logits
    loss = causal_lm_loss(logits, torch.tensor(variant["loss_labels"]))
    loss.backward()
    assert loss.item() == pytest.approx(variant["loss"], abs=2e-4)
    start = f"{variant['name']}.grad."
    wanted = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
    trained = {name: weight.grad for name, weight in with_prefix.named_parameters() if weight.requires_grad}
    assert trained.keys() == wanted.keys()
    for name, gradient in trained.items():
        assert gradient is not None
        close(gradient, wanted[name], 2e-4)


@needs_golden
def test_the_old_kits_file_loads_and_unloads(tiny_chat: ChatGLMModel) -> None:
    before = logits_of(tiny_chat)
    adapter = load_adapter(tiny_chat, GOLDEN / "ptuning-bin")
    inputs = inputs_of(PTUNING["inputs"]["single"])
    assert_logits(tiny_chat(**inputs).logits, golden_tensors("ptuning.safetensors"), "plain.single")
    with pytest.raises(AdapterError, match="cannot be merged"):
        adapter.merge()
    with pytest.raises(AdapterError, match="already"):
        load_adapter(tiny_chat, GOLDEN / "ptuning-bin")
    adapter.unload()
    assert torch.equal(logits_of(tiny_chat), before)


def load_prefix(model: ChatGLMModel, folder: Path, tensors: dict[str, Tensor]) -> Adapter:
    torch.save(tensors, folder / "pytorch_model.bin")
    return load_adapter(model, folder)


@pytest.mark.parametrize("start", ["transformer.prefix_encoder.", "prefix_encoder."])
def test_both_spellings_of_the_prefix_are_read(start: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")  # as the official kits leave it
    model = random_model()
    before = logits_of(model)
    load_prefix(model, tmp_path, {f"{start}embedding.weight": torch.randn(5, WIDTH)})
    assert not torch.allclose(logits_of(model), before)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"prefix_encoder.embedding.weight": torch.ones(5, WIDTH + 1)}, "another model"),
        ({"prefix_encoder.embedding.weight": torch.full((5, WIDTH), torch.inf)}, "NaN or infinite"),
        ({"prefix_encoder.embedding.weight": torch.ones(5, WIDTH), "lm_head.weight": torch.ones(1)}, "not a prefix"),
        (
            {"prefix_encoder.embedding.weight": torch.ones(5, WIDTH), "prefix_encoder.trans.0.bias": torch.ones(32)},
            "prefix_encoder.trans.0.weight is missing",
        ),
        ({"weight": torch.ones(2)}, "not a prefix"),
        ({"prefix_encoder.embedding.weight": torch.ones(5, 3)}, "it was trained for another model; give that one as"),
        ({"prefix_encoder.embedding.weight": torch.ones(5, WIDTH, dtype=torch.int64)}, r"stored as torch\.int64"),
    ],
)
def test_prefixes_that_do_not_fit_are_refused(tensors: dict[str, Tensor], said: str, tmp_path: Path) -> None:
    model = random_model()
    with pytest.raises(AdapterError, match=said):
        load_prefix(model, tmp_path, tensors)
    assert model.prefix() is None


def test_a_checkpoint_with_its_prefix_inside_is_saved_and_loaded(tmp_path: Path) -> None:
    model = random_model(replace(CONFIG, pre_seq_len=4), torch.float32)
    save_model(model, tmp_path)
    again = load_model(tmp_path, device="cpu", dtype="float32")
    assert again.config.pre_seq_len == 4
    assert torch.equal(logits_of(again), logits_of(model))
    assert "transformer.prefix_encoder.embedding.weight" in load_file(tmp_path / "model.safetensors")
