from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from chatglm3.engine.engine import Engine
from chatglm3.engine.network import Network
from chatglm3.engine.params import SamplingParams
from chatglm3.engine.prefix import Entry, PrefixStore, common_prefix
from chatglm3.engine.sequence import Generation, Request
from chatglm3.errors import NumericsError
from chatglm3.model.adapters import load_adapter
from chatglm3.model.cache import KVCache
from chatglm3.model.transformer import ChatGLMModel
from tiny_model import greedy, tiny_config, tiny_model, tokens_computed

VOCABULARY = 256
GREEDY = SamplingParams(temperature=0, max_new_tokens=8)


def ask(engine: Engine, prompt: Sequence[int], params: SamplingParams = GREEDY) -> Generation:
    return engine.generate([Request(tuple(prompt), params)])[0]


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_common_prefix(a: list[int], b: list[int]) -> None:
    length = common_prefix(a, tuple(b))
    assert a[:length] == b[:length]
    assert length == min(len(a), len(b)) or a[length] != b[length]


def new_store(model: ChatGLMModel, *, size: int = 3, caches: int = 100) -> PrefixStore:
    """A store with room for so many caches of four tokens."""
    network = Network(model, VOCABULARY)
    limit = caches * network.cache_bytes(1, 4)
    return PrefixStore(network.new_cache, network.cache_bytes, size=size, limit=limit)


def fill(store: PrefixStore, *rows: tuple[int, ...]) -> list[KVCache]:
    """Caches that hold `rows` (whatever keys and values), and are kept."""
    caches = []
    for ids in rows:
        cache = store.allocate(1, 4)
        assert cache is not None
        cache.advance(len(ids))
        store.release(cache, ids)
        caches.append(cache)
    return caches


def test_the_store_gives_what_shares_most_and_drops_the_least_recently_used(model: ChatGLMModel) -> None:
    store = new_store(model)
    two, three, _nine = fill(store, (1, 2), (1, 2, 3), (9,))
    assert store.acquire((1, 2, 3, 4), 4) == (three, 3)  # it goes to its new owner as it is
    store.release(three, (1, 2, 3))
    copied = store.acquire((1, 3), 4)
    assert copied is not None
    assert copied[0] not in (two, three)
    assert copied[1] == 1
    running = Entry((4, 5, 6, 7), three)
    assert store.acquire((4, 5, 6, 8), 4, [running]) is not None
    assert store.nbytes == 5 * two.nbytes
    fill(store, (5, 6))  # the ninth is what nobody has asked for
    found = store.acquire((9, 9), 4)
    assert found is not None
    assert found[1] == 0
    store.clear()
    assert store.nbytes == 0


def test_caches_give_way_only_as_far_as_room_is_needed(model: ChatGLMModel) -> None:
    store = new_store(model, caches=3)
    first, second, third = fill(store, (1, 1), (2, 2), (3, 3))
    held = store.acquire((2, 2, 2), 4)
    assert held == (second, 2)
    assert store.acquire((1, 1, 7, 7), 12) is None
    assert store.nbytes == 3 * first.nbytes  # nothing was freed for what cannot be
    assert store.acquire((3, 3, 9), 4) == (third, 2)
    assert store.allocate(1, 4) is not None  # in place of the first
    assert store.allocate(1, 4) is None
    assert store.nbytes == 3 * first.nbytes


def test_what_would_be_copied_gives_way_too(model: ChatGLMModel) -> None:
    store = new_store(model, caches=2)
    fill(store, (1, 1), (2, 2))
    found = store.acquire((1, 1, 7, 7), 8)
    assert found is not None
    assert found[1] == 0
    assert store.nbytes == found[0].nbytes


def test_a_pinned_cache_never_gives_way(model: ChatGLMModel) -> None:
    store = new_store(model, caches=2, size=1)
    cache = store.allocate(1, 4)
    assert cache is not None
    cache.advance(3)
    pin = store.pin((1, 2, 3), cache)
    fill(store, (4,), (5,), (6,))
    found = store.acquire((1, 2, 3, 4), 4)
    assert found is not None
    assert found[1] == 3
    assert found[0] is not cache
    assert store.allocate(1, 4) is None
    store.unpin(pin)
    assert store.allocate(1, 4) is not None


@pytest.mark.parametrize("limit", [8, None])
def test_a_turn_computes_only_what_is_new_and_says_so(model: ChatGLMModel, limit: int | None) -> None:
    """Growing conversations, with a fixed number of new tokens and with the rest of the context."""
    engine = Engine(model, VOCABULARY, max_context=100)
    params, stop = SamplingParams(temperature=0, max_new_tokens=limit), frozenset(range(0, VOCABULARY, 8))
    prompt: tuple[int, ...] = (1, 2, 3)
    fed = 0  # prompt and answer, but for the answer's last token, which no forward pass has seen
    for turn in range(5):
        with tokens_computed(model) as counts:
            generation = engine.generate([Request(prompt, params, stop)])[0]
        alone = Engine(model, VOCABULARY, max_context=100).generate([Request(prompt, params, stop)])[0]
        assert (generation.token_ids, generation.stop_id) == (alone.token_ids, alone.stop_id)
        assert (generation.cached_tokens, alone.cached_tokens) == (fed, 0)
        assert counts[0] == len(prompt) - fed
        fed = len(prompt) + len(generation.token_ids) - (generation.stop_id is None)
        prompt = (*prompt, *generation.token_ids, 100 + turn, 7)


def test_the_same_prompt_again_computes_its_last_token(engine: Engine, model: ChatGLMModel) -> None:
    first = ask(engine, range(40))
    with tokens_computed(model) as counts:
        second = ask(engine, range(40))
    assert second.token_ids == first.token_ids
    assert (counts[0], second.cached_tokens) == (1, 39)


def test_a_shorter_and_a_branching_prompt_reuse_what_they_share(model: ChatGLMModel) -> None:
    engine = Engine(model, VOCABULARY, kept_caches=8)
    ask(engine, range(40))
    for prompt, shared in (([*range(20)], 19), ([*range(25), 200, 201], 25), ([0, 99], 1), ([77], 0)):
        generation = ask(engine, prompt)
        assert generation.cached_tokens == shared
        assert list(generation.token_ids) == greedy(model, prompt, 8, VOCABULARY)
    assert ask(engine, range(40)).cached_tokens == 39  # nobody has written into it


def batch_of_five(engine: Engine, model: ChatGLMModel, shared: Sequence[int], limit: int | None) -> list[int]:
    rows = [(*shared, 200 + i, 3) for i in range(5)]
    stops = frozenset(range(0, VOCABULARY, 4))
    requests = [Request(row, SamplingParams(temperature=0, max_new_tokens=limit), stops) for row in rows]
    alone = [Engine(model, VOCABULARY, max_context=150).generate([r])[0] for r in requests]
    with tokens_computed(model) as counts:
        together = engine.generate(requests)
    assert [g.token_ids for g in together] == [g.token_ids for g in alone]
    assert [g.cached_tokens for g in together] == [len(shared)] * 5
    decoded = sum(max(len(g.token_ids) - (g.stop_id is None), 0) for g in together)
    return [sum(counts) - decoded, *counts]


@pytest.mark.parametrize("limit", [8, None])
@pytest.mark.parametrize("max_batch", [1, 2, 16])
def test_a_batch_computes_what_its_prompts_share_once(model: ChatGLMModel, limit: int | None, max_batch: int) -> None:
    engine = Engine(model, VOCABULARY, max_context=150, max_batch=max_batch)
    prompt_tokens, *_ = batch_of_five(engine, model, range(60), limit)
    assert prompt_tokens == 60 + 5 * 2


@pytest.mark.parametrize("limit", [8, None])
@pytest.mark.parametrize("max_batch", [1, 2, 16])
def test_a_batch_after_a_conversation_computes_only_its_own_tokens(
    model: ChatGLMModel, limit: int | None, max_batch: int
) -> None:
    """The kept cache is roomy enough to be given away whole, to one of the five."""
    engine = Engine(model, VOCABULARY, max_context=150, max_batch=max_batch)
    first = engine.generate([Request(tuple(range(60)), SamplingParams(temperature=0), frozenset(range(0, 256, 4)))])[0]
    history = (*range(60), *first.token_ids, first.stop_id or 0)
    prompt_tokens, *_ = batch_of_five(engine, model, history, limit)
    assert prompt_tokens == 1 + 5 * 2


def test_a_request_shares_with_one_that_is_still_running(engine: Engine, model: ChatGLMModel) -> None:
    stream = engine.stream(Request(tuple(range(40)), GREEDY))
    begun = [next(stream), next(stream)]
    generation = ask(engine, [*range(40), 9])
    assert generation.cached_tokens == 40
    assert list(generation.token_ids) == greedy(model, [*range(40), 9], 8, VOCABULARY)
    rest = [event for event in stream if isinstance(event, int)]
    assert [*begun, *rest] == greedy(model, range(40), 8, VOCABULARY)


def test_more_conversations_than_kept_caches(model: ChatGLMModel) -> None:
    engine = Engine(model, VOCABULARY, kept_caches=3)
    for _ in range(2):
        for first in range(5):
            generation = ask(engine, [first, *range(30)])
            assert list(generation.token_ids) == greedy(model, [first, *range(30)], 8, VOCABULARY)
            assert generation.cached_tokens == 0  # the one that is wanted was always dropped just before
    assert ask(engine, [4, *range(30), 8]).cached_tokens == 31


def test_new_weights_do_not_meet_old_keys_and_values() -> None:
    model = tiny_model(tiny_config(VOCABULARY))
    engine = Engine(model, VOCABULARY)
    before = ask(engine, range(40))
    with torch.no_grad():
        model.get_parameter("transformer.encoder.layers.0.self_attention.query_key_value.bias").add_(0.5)
    after = ask(engine, range(40))
    assert after.cached_tokens == 0
    assert list(after.token_ids) == greedy(model, range(40), 8, VOCABULARY)
    assert after.token_ids != before.token_ids
    assert ask(engine, range(40)).cached_tokens == 39


def test_an_adapter_that_comes_and_goes_does_not_meet_old_keys_and_values(tmp_path: Path) -> None:
    model = tiny_model(tiny_config(VOCABULARY))
    engine = Engine(model, VOCABULARY)
    before = ask(engine, range(40))
    config = model.config
    width = config.num_layers * 2 * config.multi_query_group_num * config.kv_channels
    table = torch.randn((4, width), generator=torch.Generator().manual_seed(3))
    save_file({"transformer.prefix_encoder.embedding.weight": table}, tmp_path / "model.safetensors")
    adapter = load_adapter(model, tmp_path)
    tuned = ask(engine, range(40))
    assert list(tuned.token_ids) == greedy(model, range(40), 8, VOCABULARY)
    assert tuned.token_ids != before.token_ids
    adapter.unload()
    assert ask(engine, range(40)).token_ids == before.token_ids


def test_keys_and_values_that_gave_no_number_are_not_kept() -> None:
    model = tiny_model(tiny_config(VOCABULARY))
    engine = Engine(model, VOCABULARY)
    mlp = model.blocks[1].mlp
    handle = mlp.register_forward_hook(lambda _module, _inputs, output: output * torch.nan)
    for call in (
        lambda: ask(engine, range(40)),
        lambda: engine.generate([Request((*range(40), i), GREEDY) for i in range(3)]),
        lambda: list(engine.stream(Request(tuple(range(40)), GREEDY))),
        lambda: engine.score(range(40), [(1, 2)]),
        lambda: engine.beams(Request(tuple(range(40)), SamplingParams(num_beams=2))),
    ):
        with pytest.raises(NumericsError, match=r"layers\.1\.mlp at position 0|not when computed again"):
            call()
        assert engine.cache_bytes == 0
    handle.remove()  # no weight has changed
    generation = ask(engine, range(40))
    assert generation.cached_tokens == 0
    assert list(generation.token_ids) == greedy(model, range(40), 8, VOCABULARY)
