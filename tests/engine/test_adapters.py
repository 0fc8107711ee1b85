"""Several adapters on one engine: each request gets the tokens that it gets alone, and the bare model stays bare."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter_folders import lora_folder, prefix_folder
from chatglm3.engine.engine import Engine
from chatglm3.engine.labels import LabelTree
from chatglm3.engine.params import SamplingParams
from chatglm3.engine.sequence import Generating, Request
from chatglm3.errors import AdapterError, ChatGLMError
from chatglm3.model.adapters import load_adapter
from chatglm3.model.checkpoint import load_model, save_model
from chatglm3.model.transformer import ChatGLMModel
from engine_requests import GREEDY, PROMPT, VOCABULARY, answer, in_threads, prompts
from tiny_model import greedy, tiny_config, tiny_model, tokens_computed

NAMES = (None, "red", "blue", "prefix")
ROOM = 40


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two LoRA, one of them beside a single layer of each block, and a P-Tuning prefix."""
    config, parent = tiny_config(VOCABULARY + 8), tmp_path_factory.mktemp("adapters")
    return {
        "red": lora_folder(parent / "red", config, seed=1),
        "blue": lora_folder(parent / "blue", config, seed=2, targets=("query_key_value",), size=0.5),
        "prefix": prefix_folder(parent / "prefix", config, seed=3),
    }


def with_adapters(engine: Engine, folders: dict[str, Path]) -> Engine:
    for name, folder in folders.items():
        engine.adapters.add(name, folder)
    return engine


@pytest.fixture
def engine(model: ChatGLMModel, folders: dict[str, Path]) -> Engine:
    return with_adapters(Engine(model, VOCABULARY), folders)


def alone(model: ChatGLMModel, folders: dict[str, Path], name: str | None, prompt: Sequence[int], n: int) -> list[int]:
    """What the model with just this adapter says, every token from the whole text."""
    if name is None:
        return greedy(model, prompt, n, VOCABULARY)
    adapter = load_adapter(model, folders[name])
    try:
        return greedy(model, prompt, n, VOCABULARY)
    finally:
        adapter.unload()


def is_bare(model: ChatGLMModel) -> bool:
    with torch.device("meta"):
        return model.state_dict().keys() == ChatGLMModel(model.config).state_dict().keys()


def test_adapters_change_what_is_said(model: ChatGLMModel, folders: dict[str, Path], engine: Engine) -> None:
    answers = [answer(engine, Request(PROMPT, GREEDY, adapter=name)) for name in NAMES]
    assert len(set(map(tuple, answers))) == len(NAMES)
    assert answers == [alone(model, folders, name, PROMPT, 16) for name in NAMES]
    assert is_bare(model)


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), max_batch=st.integers(1, 6), chunk=st.integers(1, 12), caches=st.integers(2, 6))
def test_any_mixture_gives_each_request_the_tokens_that_it_gets_alone(
    model: ChatGLMModel, folders: dict[str, Path], seed: int, max_batch: int, chunk: int, caches: int
) -> None:
    rng = random.Random(seed)
    limit = caches * (Engine(model, VOCABULARY).core.network.cache_bytes(1, ROOM + 12 + 4))
    engine = with_adapters(
        Engine(model, VOCABULARY, max_batch=max_batch, prefill_chunk=chunk, cache_bytes=limit), folders
    )
    rows = prompts(rng.randrange(1, 10), seed)
    asked = [(row, rng.choice(NAMES), rng.choice((1, 5, 12))) for row in rows]
    everybody = [
        Generating(Request(row, GREEDY), room, VOCABULARY, engine.adapters.find(name)) for row, name, room in asked
    ]
    waiting = list(everybody)
    while waiting or engine.core.load != (0, 0):
        for _ in range(rng.randrange(3)):
            if waiting:
                engine.core.submit(waiting.pop())
        if rng.random() < 0.03 and len(engine.adapters.names) > 1:
            engine.adapters.remove(engine.adapters.names[0])
        engine.core.step()
        assert is_bare(model)
        assert engine.cache_bytes <= limit
    for (row, name, room), sequence in zip(asked, everybody, strict=True):
        assert sequence.error is None
        assert sequence.output == alone(model, folders, name, row, room)


def test_a_batch_of_mixed_requests_is_answered_in_order(
    model: ChatGLMModel, folders: dict[str, Path], engine: Engine
) -> None:
    requests = [Request((*PROMPT, i), GREEDY, adapter=NAMES[i % 4]) for i in range(12)]
    found = [list(generation.token_ids) for generation in engine.generate(requests)]
    assert found == [alone(model, folders, r.adapter, r.prompt, 16) for r in requests]
    outcomes = engine.outcomes([*requests[:2], Request(PROMPT, GREEDY, adapter="green")])
    assert isinstance(outcomes[2], AdapterError)
    assert [list(o.token_ids) for o in outcomes[:2] if not isinstance(o, ChatGLMError)] == found[:2]


def test_threads_and_coroutines_mix_adapters(model: ChatGLMModel, folders: dict[str, Path], engine: Engine) -> None:
    wanted = {name: alone(model, folders, name, PROMPT, 16) for name in NAMES}
    requests = [Request(PROMPT, GREEDY, adapter=NAMES[i % 4]) for i in range(8)]
    found = in_threads([lambda r=request: answer(engine, r) for request in requests])  # type: ignore[misc]
    assert found == [wanted[r.adapter] for r in requests]

    async def together() -> list[list[int]]:
        generations = await asyncio.gather(*(engine.agenerate(r) for r in requests))
        return [list(generation.token_ids) for generation in generations]

    assert asyncio.run(together()) == found
    streamed = [token for token in engine.stream(requests[1]) if isinstance(token, int)]
    assert streamed == wanted["red"]


def test_adapters_take_turns(model: ChatGLMModel, engine: Engine) -> None:
    """However many requests each of them has."""
    order: list[str | None] = []

    def sequence(name: str | None, number: int) -> Generating:
        def told(_token: int) -> bool:
            if not number:
                order.append(name)
            return False

        request = Request((number, 5, 7), GREEDY, frozenset(), told)
        return Generating(request, 10, VOCABULARY, engine.adapters.find(name))

    for name, count in (("red", 5), (None, 1), ("blue", 2)):
        for number in range(count):
            engine.core.submit(sequence(name, number))
    for _ in range(30):
        engine.core.step()
    assert all(set(order[i : i + 3]) == {"red", None, "blue"} for i in range(0, 30, 3))
    assert engine.core.load == (0, 0)


def test_who_has_no_more_requests_does_not_hold_up_the_others(model: ChatGLMModel, engine: Engine) -> None:
    """New requests of one adapter never keep another one waiting for longer than a round."""
    waiting = Generating(Request(PROMPT, GREEDY), 10, VOCABULARY, engine.adapters.find("blue"))
    engine.core.submit(waiting)
    for step in range(2 * 10 + 1):
        adapter = engine.adapters.find(("red", None)[step // 3 % 2])
        engine.core.submit(Generating(Request((step, 1), GREEDY), 1, VOCABULARY, adapter))
        engine.core.step()
    assert len(waiting.output) >= 7


def test_what_was_computed_is_found_for_the_same_adapter_only(model: ChatGLMModel, engine: Engine) -> None:
    prompt = tuple(range(30))
    for name in NAMES:
        generations = [engine.generate([Request(prompt, GREEDY, adapter=name)])[0] for _ in range(2)]
        assert [g.cached_tokens for g in generations] == [0, 29], name
    shared = [Request((*prompt, 77 + i), GREEDY, adapter=NAMES[i % 2]) for i in range(6)]
    engine.forget()
    with tokens_computed(model) as counts:
        assert [g.cached_tokens for g in engine.generate(shared)] == [30] * 6
    assert sum(counts) == 2 * 30 + 6 * 16  # each beginning once for each of the two


def test_a_held_beginning_belongs_to_its_adapter(model: ChatGLMModel, folders: dict[str, Path], engine: Engine) -> None:
    ids = tuple(range(20))
    for name in ("red", "prefix"):
        held = engine.hold(ids, name)
        state, prints = held.cache.state(), engine.fingerprint(held.adapter)
        engine.forget()
        assert engine.generate([Request((*ids, 9), GREEDY)])[0].cached_tokens == 0
        found = engine.generate([Request((*ids, 9), GREEDY, adapter=name)])[0]
        assert found.cached_tokens == 20
        other = with_adapters(Engine(model, VOCABULARY), folders)
        assert other.fingerprint(other.adapters.find(name)) == prints != other.fingerprint()
        other.restore(ids, state, name)
        again = other.generate([Request((*ids, 9), GREEDY, adapter=name)])[0]
        assert (again.cached_tokens, again.token_ids) == (20, found.token_ids)
        engine.release(held)


def test_labels_and_beams_have_adapters_too(model: ChatGLMModel, folders: dict[str, Path], engine: Engine) -> None:
    tree, labels = LabelTree([(1, 2), (1, 3), (4,)]), [(1, 2), (1, 3), (4,)]
    beam = SamplingParams(num_beams=3, max_new_tokens=6)
    for name in NAMES:
        adapter = None if name is None else load_adapter(model, folders[name])
        lone = Engine(model, VOCABULARY)
        scores, beams = lone.rank([PROMPT, (8, 9)], tree), lone.beams(Request(PROMPT, beam))
        if adapter is not None:
            adapter.unload()
        for found, wanted in zip(engine.rank([PROMPT, (8, 9)], tree, name), scores, strict=True):
            for a, b in zip(found.logprobs, wanted.logprobs, strict=True):
                assert list(a) == pytest.approx(list(b), abs=1e-4)
        assert engine.score(PROMPT, labels, name)[2] == pytest.approx(list(scores[0].logprobs[2]), abs=1e-4)
        assert engine.beams(Request(PROMPT, beam, adapter=name))[0].token_ids == beams[0].token_ids
        assert is_bare(model)


def test_an_adapter_that_is_removed_is_forgotten(model: ChatGLMModel, folders: dict[str, Path], engine: Engine) -> None:
    running = Generating(Request(PROMPT, GREEDY), 16, VOCABULARY, engine.adapters.find("red"))
    engine.generate([Request((*PROMPT, 1), GREEDY, adapter="red")])
    engine.core.submit(running)
    engine.core.step()
    engine.adapters.remove("red")
    assert engine.adapters.names == ("blue", "prefix")
    with pytest.raises(AdapterError, match=r"there is no adapter 'red'; there are blue, prefix; add_adapter"):
        engine.generate([Request(PROMPT, GREEDY, adapter="red")])
    while not running.is_done:
        engine.core.step()
    assert running.output == alone(model, folders, "red", PROMPT, 16)
    engine.adapters.add("red", folders["blue"])
    generation = engine.generate([Request(PROMPT, GREEDY, adapter="red")])[0]
    assert generation.cached_tokens == 0
    assert list(generation.token_ids) == alone(model, folders, "blue", PROMPT, 16)


def test_names_and_folders_are_checked(
    model: ChatGLMModel, folders: dict[str, Path], engine: Engine, tmp_path: Path
) -> None:
    for name, folder, said in (
        ("red", folders["red"], "there is an adapter 'red' already"),
        ("", folders["red"], "not empty"),
        ("green", tmp_path, "no adapter"),
        ("green", lora_folder(tmp_path / "other", tiny_config(VOCABULARY, layers=3)), "not a layer of this model"),
    ):
        with pytest.raises(AdapterError, match=said):
            engine.adapters.add(name, folder)
    assert engine.adapters.names == ("red", "blue", "prefix")
    with pytest.raises(AdapterError, match="none has been added"):
        Engine(model, VOCABULARY).generate([Request(PROMPT, GREEDY, adapter="red")])


@pytest.mark.parametrize("name", ["red", "prefix"])
def test_what_was_loaded_into_the_model_stays_there(name: str, folders: dict[str, Path]) -> None:
    """An adapter of the other sort acts together with it; one of the same sort is refused."""
    model = tiny_model(tiny_config(VOCABULARY + 8))
    loaded = load_adapter(model, folders[name])
    engine = Engine(model, VOCABULARY)
    with pytest.raises(AdapterError, match="already; load it without adapter=, and then add each by its name"):
        engine.adapters.add("again", folders[name])
    before = answer(engine, Request(PROMPT, GREEDY))
    other = "prefix" if name == "red" else "red"
    engine.adapters.add("other", folders[other])
    both = load_adapter(model, folders[other])
    wanted = greedy(model, PROMPT, 16, VOCABULARY)
    both.unload()
    assert answer(engine, Request(PROMPT, GREEDY, adapter="other")) == wanted != before
    assert answer(engine, Request(PROMPT, GREEDY)) == before == greedy(model, PROMPT, 16, VOCABULARY)
    loaded.unload()
    assert is_bare(model)


@pytest.mark.parametrize("name", ["red", "prefix"])
def test_an_interrupted_step_leaves_a_bare_model(
    name: str, model: ChatGLMModel, folders: dict[str, Path], engine: Engine
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    handle = model.transformer.encoder.final_layernorm.register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        engine.generate([Request(PROMPT, GREEDY, adapter=name)])
    handle.remove()
    assert is_bare(model)
    assert answer(engine, Request(PROMPT, GREEDY, adapter=name)) == alone(model, folders, name, PROMPT, 16)
    assert answer(engine, Request(PROMPT, GREEDY)) == alone(model, folders, None, PROMPT, 16)


@pytest.mark.parametrize("bits", [8, 4])
def test_adapters_beside_integers(bits: int, folders: dict[str, Path], tmp_path: Path) -> None:
    save_model(tiny_model(tiny_config(VOCABULARY + 8)), tmp_path)
    model = load_model(tmp_path, device="cpu", dtype="float32", quantize=bits)
    engine = with_adapters(Engine(model, VOCABULARY), folders)
    requests = [Request((*PROMPT, i), GREEDY, adapter=NAMES[i % 4]) for i in range(8)]
    found = [list(generation.token_ids) for generation in engine.generate(requests)]
    assert found == [alone(model, folders, r.adapter, r.prompt, 16) for r in requests]


def test_closing_lets_go_of_the_weights(folders: dict[str, Path]) -> None:
    model = tiny_model(tiny_config(VOCABULARY + 8))
    engine = with_adapters(Engine(model, VOCABULARY), folders)
    engine.generate([Request(PROMPT, GREEDY, adapter=name) for name in NAMES])
    weight = weakref.ref(model.blocks[0].self_attention.query_key_value.weight)
    engine.close()
    del model
    gc.collect()
    assert weight() is None
    with pytest.raises(ChatGLMError, match="closed"):
        engine.adapters.add("red", folders["red"])
