"""The network against the official code's values, and against itself in its different ways of running."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from chatglm3.kernels.ops import attend
from chatglm3.model.cache import ConcatCache, KVCache
from chatglm3.model.checkpoint import load_model
from chatglm3.model.transformer import ChatGLMModel
from golden import GOLDEN, golden_json, golden_tensors, needs_golden
from model.reference import TOLERANCE, assert_logits, close, inputs_of
from model.small import CONFIG, random_model

CASES = {case["name"]: case for case in golden_json("forward.json").get("cases", ())}
PLAIN = [name for name in CASES if name not in ("batch_cached", "cached")]
BIN_CASES = golden_json("tiny-bin-forward.json").get("cases", ())


@pytest.fixture(scope="module")
def forward() -> dict[str, Tensor]:
    return golden_tensors("forward.safetensors")


def new_cache(model: ChatGLMModel, batch: int, capacity: int = 64) -> KVCache:
    return KVCache(model.config, batch, capacity, model.dtype, [block.device for block in model.blocks])


@needs_golden
@pytest.mark.parametrize("name", PLAIN)
def test_logits_are_the_official_ones(name: str, forward: dict[str, Tensor]) -> None:
    case = CASES[name]
    dtype = getattr(torch, case["dtype"])
    model = load_model(GOLDEN / "tiny-chat", device="cpu", dtype=case["dtype"], config_overrides=case.get("config"))
    inputs = inputs_of(case)
    assert_logits(model(**inputs).logits, forward, name, inputs["key_mask"], TOLERANCE[dtype])


@needs_golden
def test_hidden_states_and_cache_are_the_official_ones(tiny_chat: ChatGLMModel, forward: dict[str, Tensor]) -> None:
    cache = ConcatCache()
    output = tiny_chat(torch.tensor(CASES["single"]["input_ids"]), cache=cache, output_hidden_states=True)
    close(torch.stack(output.hidden_states).transpose(1, 2), forward["single.hidden_states"], 2e-4)
    close(output.last_hidden_state.transpose(0, 1), forward["single.last_hidden_state"], 2e-4)
    keys = torch.stack([key for key, _ in cache.layers]).permute(0, 3, 1, 2, 4)
    values = torch.stack([value for _, value in cache.layers]).permute(0, 3, 1, 2, 4)
    close(keys, forward["single.cache_key"], 2e-4)
    close(values, forward["single.cache_value"], 2e-4)


@needs_golden
@pytest.mark.parametrize("preallocated", [True, False])
def test_a_padded_batch_goes_on_from_its_cache(
    preallocated: bool, tiny_chat: ChatGLMModel, forward: dict[str, Tensor]
) -> None:
    cache = new_cache(tiny_chat, batch=3) if preallocated else ConcatCache()
    first = inputs_of(CASES["batch"])
    assert_logits(tiny_chat(**first, cache=cache).logits, forward, "batch", first["key_mask"])
    for step in CASES["batch_cached"]["steps"]:
        inputs = inputs_of(step)
        assert_logits(tiny_chat(**inputs, cache=cache).logits, forward, step["tensors"])


@needs_golden
@pytest.mark.parametrize("preallocated", [True, False])
def test_steps_and_a_chunk_agree_with_one_pass(
    preallocated: bool, tiny_chat: ChatGLMModel, forward: dict[str, Tensor]
) -> None:
    case: dict[str, Any] = CASES["cached"]
    cache: ConcatCache | KVCache = new_cache(tiny_chat, batch=1) if preallocated else ConcatCache()
    for step in case["steps"]:
        assert_logits(tiny_chat(**inputs_of(step), cache=cache).logits, forward, step["tensors"])
    ids = torch.tensor(case["all_ids"])
    assert_logits(tiny_chat(ids).logits, forward, case["full_run_tensors"])
    if isinstance(cache, ConcatCache):
        keys = torch.stack([key for key, _ in cache.layers]).permute(0, 3, 1, 2, 4)
        values = torch.stack([value for _, value in cache.layers]).permute(0, 3, 1, 2, 4)
        close(keys, forward["cached.final_cache_key"], 2e-4)
        close(values, forward["cached.final_cache_value"], 2e-4)


@needs_golden
@pytest.mark.parametrize("case", BIN_CASES, ids=lambda case: case["name"])
def test_the_bin_checkpoint_computes_the_official_values(case: dict[str, Any]) -> None:
    model = load_model(GOLDEN / "tiny-bin", device="cpu", dtype="float32")
    tensors = golden_tensors("tiny-bin-forward.safetensors")
    output = model(torch.tensor(case["input_ids"]), output_hidden_states=True)
    close(output.logits, tensors[f"{case['name']}.logits"], 2e-4)
    close(torch.stack(output.hidden_states).transpose(1, 2), tensors[f"{case['name']}.hidden_states"], 2e-4)


def test_every_way_of_caching_gives_the_same_logits() -> None:
    model = random_model(dtype=torch.float32)
    ids = torch.arange(5, 35)[None]
    whole = model(ids).logits
    for cache in (new_cache(model, batch=1), ConcatCache()):
        pieces = [model(part, cache=cache).logits for part in ids.split((9, 1, 1, 12, 7), dim=1)]
        close(torch.cat(pieces, dim=1), whole, 2e-4)


def test_sequences_of_one_call_do_not_see_each_other() -> None:
    model = random_model(dtype=torch.float32)
    prompts = [torch.arange(5, 12), torch.arange(40, 41), torch.arange(100, 120)]
    alone = [model(ids[None]).logits[0] for ids in prompts]
    caches = [new_cache(model, batch=1) for _ in prompts]
    positions = torch.cat([torch.arange(len(ids)) for ids in prompts])[None]
    segments = [(cache, len(ids)) for cache, ids in zip(caches, prompts, strict=True)]
    together = model.logits(model.hidden(torch.cat(prompts)[None], positions, segments))[0]
    close(together, torch.cat(alone), 2e-4)
    assert [cache.tokens for cache in caches] == [7, 1, 20]


def test_a_cache_can_be_cut_copied_and_reordered() -> None:
    model = random_model(dtype=torch.float32)
    one, rows = new_cache(model, batch=1), new_cache(model, batch=2)
    model(torch.arange(5, 15)[None], cache=one)
    one.truncate(6)
    rows.copy_from(one, 6)
    step = torch.tensor([[21, 22], [31, 32]])
    model(step, cache=rows)
    rows.reorder(torch.tensor([1, 1]))
    found = model(torch.tensor([[40], [40]]), cache=rows).logits
    prompt = torch.tensor([[*range(5, 11), 31, 32, 40]])
    close(found, model(prompt).logits[:, -1:].expand(2, -1, -1), 2e-4)


def test_positions_beyond_the_table_are_an_error() -> None:
    with pytest.raises(IndexError):
        random_model()(torch.ones(1, 1, dtype=torch.long), positions=torch.tensor([[CONFIG.seq_length]]))


class _LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the number of elements of the largest storage that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


@pytest.mark.parametrize("padded", [False, True], ids=["plain", "padded"])
@pytest.mark.parametrize(
    ("new", "past", "limit"),
    [(2048, 0, 2048 * 8 * 64), (512, 7680, 256 * 8192), (1, 8191, 8191 * 64 + 64)],
    ids=["prompt", "chunk", "step"],
)
def test_attention_builds_no_square_mask_and_repeats_no_keys(new: int, past: int, limit: int, padded: bool) -> None:
    heads, width, total = 8, 64, past + new
    keys = torch.randn(1, 1, total, width)
    mask = torch.ones(1, total, dtype=torch.bool) if padded else None
    with _LargestTensor() as largest:
        attend(torch.randn(1, new, heads, width), keys, keys, mask)
    assert largest.elements <= limit  # below new * total, and below heads * total * width where there is a past
