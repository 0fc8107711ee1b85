"""Decoding beside the official code: every section of the fixture `generate.json`, on its tiny model in fp32."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from chatglm3.chat import ChatGLM
from chatglm3.engine.engine import Engine
from chatglm3.engine.params import SamplingParams
from chatglm3.engine.sampling import candidates, penalize_repetition
from chatglm3.engine.sequence import Generation, Request
from chatglm3.messages import as_history
from chatglm3.model.adapters import load_adapter
from chatglm3.model.checkpoint import load_model
from chatglm3.model.transformer import ChatGLMModel
from chatglm3.prompt import chat_prompt
from chatglm3.reply import official_response, parse_ids
from chatglm3.tokenizer import Tokenizer
from golden import GOLDEN, golden_json, golden_tensors, needs_golden

pytestmark = needs_golden
DATA: dict[str, Any] = golden_json("generate.json")
STOPS = DATA.get("eos_token_ids", [])
NEW_TOKENS = DATA.get("max_new_tokens", 0)
Case = dict[str, Any]


def cases(section: str) -> Any:
    def name(case: Case) -> str:
        return "-".join(str(case[key]) for key in ("name", "tag", "repetition_penalty") if key in case)

    return pytest.mark.parametrize("case", DATA.get(section, []), ids=name)


@pytest.fixture(scope="module")
def network() -> ChatGLMModel:
    return load_model(GOLDEN / "tiny-chat", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def glm(network: ChatGLMModel, official_tokenizer: Tokenizer) -> ChatGLM:
    return ChatGLM(network, official_tokenizer)


@pytest.fixture(scope="module")
def fresh(network: ChatGLMModel, official_tokenizer: Tokenizer) -> Engine:
    """An engine that reuses nothing."""
    return Engine(network, official_tokenizer.vocab_size, kept_caches=0)


def request(case: Case, **options: Any) -> Request:
    stops = frozenset(case.get("eos_token_ids", STOPS))
    params = SamplingParams(**{"temperature": 0, "max_new_tokens": NEW_TOKENS, **options})
    return Request(tuple(case["input_ids"]), params, stops)


def with_stop(generation: Generation) -> list[int]:
    """The ids as the official `generate` returns them."""
    return [*generation.token_ids, *([] if generation.stop_id is None else [generation.stop_id])]


@cases("greedy")
def test_greedy(glm: ChatGLM, fresh: Engine, case: Case) -> None:
    for engine in (fresh, glm.engine):
        generation = engine.generate([request(case)])[0]
        assert with_stop(generation) == case["output_ids"]
        assert generation.finish_reason == case["finish"] == "length"


@cases("greedy")
def test_chat(glm: ChatGLM, official_tokenizer: Tokenizer, case: Case) -> None:
    """The official `chat` loses the last id of an answer that ends by length; here it is kept."""
    reply = glm.chat(case["query"], case["history"], role=case["role"], temperature=0, max_new_tokens=NEW_TOKENS)
    assert reply.usage.prompt_tokens == len(case["input_ids"])
    assert (reply.usage.completion_tokens, reply.finish_reason) == (NEW_TOKENS, "length")
    assert official_tokenizer.decode(case["output_ids"]) == case["decoded"]
    whole = parse_ids(official_tokenizer, case["output_ids"])
    assert (reply.messages, reply.text) == (whole.messages, whole.text)
    shorter = parse_ids(official_tokenizer, case["output_ids"][:-1])
    expected_history = as_history(case["chat"]["history"])
    assert official_response(shorter, expected_history) == case["chat"]["response"]
    assert (*reply.history[: -len(reply.messages)], *shorter.messages) == expected_history


@cases("stop")
def test_stop_ids(glm: ChatGLM, fresh: Engine, case: Case) -> None:
    for engine in (fresh, glm.engine):
        generation = engine.generate([request(case)])[0]
        assert with_stop(generation) == case["output_ids"]
        assert (generation.finish_reason, generation.stop_id) == ("stop", case["output_ids"][-1])
    assert case["finish"] == "eos"


@cases("repetition_penalty")
def test_repetition_penalty(glm: ChatGLM, fresh: Engine, case: Case) -> None:
    for engine in (fresh, glm.engine):
        generation = engine.generate([request(case, repetition_penalty=case["repetition_penalty"])])[0]
        assert with_stop(generation) == case["output_ids"]
        assert generation.finish_reason == case["finish"]


@cases("beam_search")
def test_beam_search(glm: ChatGLM, case: Case) -> None:
    """Officially the 226 ids without a meaning take part in the softmax; here they do not, and scores say so."""
    beams = glm.engine.beams(request(case, num_beams=case["num_beams"], **case["options"]), len(case["sequences"]))
    for beam, sequence, score in zip(
        beams, case["sequences"], case["scores_with_undefined_logits_masked"], strict=True
    ):
        # Officially every stop id is written as the first of the list, and 0 fills up.
        ids = [*beam.token_ids, *([] if beam.stop_id is None else [STOPS[0]])]
        assert ids == sequence[: len(ids)]
        assert set(sequence[len(ids) :]) <= {0}
        assert beam.score == pytest.approx(score, abs=2e-4)
    best = glm.engine.generate([request(case, num_beams=case["num_beams"], **case["options"])])[0]
    assert (best.token_ids, best.stop_id) == (beams[0].token_ids, beams[0].stop_id)


@pytest.mark.parametrize("case", DATA.get("batch", []), ids=lambda case: str(case.get("eos_token_ids")))
def test_batch(network: ChatGLMModel, glm: ChatGLM, case: Case) -> None:
    """Finished rows are filled with 0 officially; here a row has its own length."""
    rows = [
        request({**case, "input_ids": [i for i, m in zip(ids, mask, strict=True) if m]})
        for ids, mask in zip(case["input_ids"], case["attention_mask"], strict=True)
    ]
    for engine in (Engine(network, glm.tokenizer.vocab_size, max_batch=2, prefill_chunk=5), glm.engine):
        together = engine.generate(rows)
        for generation, expected in zip(together, case["output_ids"], strict=True):
            ids = with_stop(generation)
            assert ids == expected[: len(ids)]
            assert set(expected[len(ids) :]) <= {0}
        alone = [engine.generate([row])[0] for row in rows]
        assert [g.token_ids for g in together] == [g.token_ids for g in alone]


@cases("stream_chat")
def test_stream_chat(glm: ChatGLM, official_tokenizer: Tokenizer, case: Case) -> None:
    """Officially the last token never appears, and the caller's history grows; neither is so here."""
    caller = [dict(item) for item in case["history"]]
    prompt = chat_prompt(
        official_tokenizer, (*as_history(caller), *as_history([{"role": case["role"], "content": case["query"]}]))
    )
    limit = case["max_length"] - len(prompt)  # officially prompt and answer together
    chunks = list(glm.stream_chat(case["query"], caller, role=case["role"], temperature=0, max_new_tokens=limit))
    reply = chunks[-1].reply
    assert reply is not None
    assert "".join(chunk.text for chunk in chunks) == reply.text
    assert reply.text.startswith(case["yielded"][-1])
    assert len(reply.text) > len(case["yielded"][-1])
    assert caller == case["history"] != case["caller_history_afterwards"]

    answer = next(c for c in DATA["greedy"] if c["name"] == case["name"])["output_ids"][:limit]
    cumulative = [official_response(parse_ids(official_tokenizer, answer[:n]), ()) for n in range(1, limit)]
    shown = [text for text in cumulative if text and not str(text).endswith("\ufffd")]
    assert shown == case["yielded"]
    shorter = parse_ids(official_tokenizer, answer[:-1])
    assert (*reply.history[: -len(reply.messages)], *shorter.messages) == as_history(case["final_history"])


@cases("distributions")
def test_distributions(network: ChatGLMModel, case: Case) -> None:
    """Over the whole vocabulary, as the official code filters it."""
    scores = network(torch.tensor([case["input_ids"]])).logits[0, -1]
    options = case["options"]
    seen = torch.zeros(len(scores), dtype=torch.bool)
    seen[case["input_ids"]] = True
    scores = penalize_repetition(scores, seen, options.get("repetition_penalty", 1.0))
    probabilities, ids = candidates(scores, options["temperature"], case["effective_top_k"], options["top_p"])
    listed = len(case["ids"])
    assert len(ids) == case["kept"]
    assert ids[:listed].tolist() == case["ids"]
    assert probabilities[:listed].tolist() == pytest.approx(case["probabilities"], abs=1e-5)
    undefined = float(probabilities[ids >= 64798].max()) if (ids >= 64798).any() else 0.0
    assert undefined == pytest.approx(case["largest_undefined_probability"], abs=1e-5)


def greedy_16(network: ChatGLMModel, fixture: dict[str, Any]) -> list[int]:
    engine = Engine(network, 64798)
    prompt = fixture["inputs"]["single"]["input_ids"][0]
    params = SamplingParams(temperature=0, max_new_tokens=16)
    first, second = (engine.generate([Request(tuple(prompt), params)])[0] for _ in range(2))
    assert first.token_ids == second.token_ids
    assert second.cached_tokens == len(prompt) - 1
    return list(first.token_ids)


@pytest.mark.parametrize("variant", golden_json("ptuning.json").get("variants", []), ids=lambda v: v["name"])
def test_greedy_with_a_p_tuning_prefix(variant: dict[str, Any]) -> None:
    overrides = {"pre_seq_len": variant["pre_seq_len"], "prefix_projection": variant["prefix_projection"]}
    network = load_model_with_prefix(overrides, variant["name"])
    assert greedy_16(network, golden_json("ptuning.json")) == variant["greedy_16_after_single"]


def load_model_with_prefix(overrides: dict[str, Any], name: str) -> ChatGLMModel:
    """The tiny model with the prefix encoder that the fixture holds under `name`."""
    plain = load_model(GOLDEN / "tiny-chat", dtype="float32", device="cpu")
    config = plain.config.from_dict({**plain.config.to_dict(), **overrides})
    network = ChatGLMModel(config).eval().requires_grad_(False)
    start = f"{name}.weights."
    tensors = golden_tensors("ptuning.safetensors")
    prefix = {key.removeprefix(start): value.float() for key, value in tensors.items() if key.startswith(start)}
    network.load_state_dict({**plain.state_dict(), **prefix})
    return network


def test_greedy_with_the_older_prefix_file(network: ChatGLMModel) -> None:
    fixture = golden_json("ptuning.json")
    adapter = load_adapter(network, GOLDEN / "ptuning-bin")
    try:
        assert greedy_16(network, fixture) == fixture["variants"][0]["greedy_16_after_single"]
    finally:
        adapter.unload()


def test_greedy_with_a_lora_adapter(fresh: Engine) -> None:
    fixture = golden_json("lora.json")
    network = load_model(GOLDEN / "tiny-chat", dtype="float32", device="cpu")
    adapter = load_adapter(network, GOLDEN / "lora")
    assert greedy_16(network, fixture) == fixture["greedy_16_after_single"]
    adapter.merge()
    assert greedy_16(network, fixture) == fixture["greedy_16_after_single"]
    prompt = tuple(fixture["inputs"]["single"]["input_ids"][0])
    plain = fresh.generate([Request(prompt, SamplingParams(temperature=0, max_new_tokens=16))])[0]
    assert list(plain.token_ids) != fixture["greedy_16_after_single"]
