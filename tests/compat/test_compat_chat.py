"""chat, stream_chat, process_response and generate, against the official calls."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch

from chatglm3.errors import ContextLengthError, MessageError, SamplingError
from chatglm3.messages import Message
from golden import golden_json, needs_golden
from taught import GREETING, STORY, SYSTEM, Loaded

GENERATE = golden_json("generate.json")
RESPONSES = golden_json("responses.json")


@needs_golden
@pytest.mark.parametrize("case", GENERATE.get("greedy", []), ids=lambda case: case["name"])
def test_official_chats(case: dict[str, Any], official: Loaded) -> None:
    history = copy.deepcopy(case["history"])
    response, new_history = official.model.chat(
        official.tokenizer, case["query"], history=history, role=case["role"], do_sample=False, max_new_tokens=32
    )
    assert history == case["history"]  # officially it has the query at its end
    # The official chat drops the last id always. These answers end by their length, so that id was a word: here it is
    # kept. Everything before it is the same.
    assert case["finish"] == "length"
    assert response == case["decoded"].strip()
    assert response.startswith(case["chat"]["response"])
    assert official.tokenizer.decode(case["output_ids"][:-1]).strip() == case["chat"]["response"]
    assert new_history[:-1] == case["chat"]["history"][:-1]
    assert new_history[-1] == {**case["chat"]["history"][-1], "content": response}


@needs_golden
@pytest.mark.parametrize("case", GENERATE.get("stream_chat", []), ids=lambda case: case["name"])
def test_official_streams(case: dict[str, Any], official: Loaded) -> None:
    history = copy.deepcopy(case["history"])
    steps = list(
        official.model.stream_chat(
            official.tokenizer, case["query"], history, max_length=case["max_length"], do_sample=False
        )
    )
    assert history == case["history"]  # officially this is caller_history_afterwards, which has the query too
    texts = [response for response, _ in steps]
    # The official stream is one token behind, so the last token never shows. Here it does, and each text comes with
    # its own token; the last step gives the whole answer once more.
    assert texts[: len(case["yielded"])] == case["yielded"]
    assert texts[len(case["yielded"])].startswith(case["yielded"][-1])
    assert len(texts[-1]) > len(case["yielded"][-1])
    assert texts[-1] == texts[-2]
    place = texts.index(case["yielded"][-1])
    assert steps[place][1] == case["final_history"]


@needs_golden
@pytest.mark.parametrize("case", GENERATE.get("batch", []), ids=lambda case: case.get("note", "length"))
def test_official_batches(case: dict[str, Any], official: Loaded) -> None:
    inputs = {name: torch.tensor(case[name]) for name in ("input_ids", "attention_mask", "position_ids")}
    stop = case.get("eos_token_ids", GENERATE["eos_token_ids"])
    outputs = official.model.generate(**inputs, max_new_tokens=32, eos_token_id=stop)
    width = inputs["input_ids"].shape[1]
    assert torch.equal(outputs[:, :width], inputs["input_ids"])
    assert outputs[:, width:].tolist() == case["output_ids"]
    bare = official.model.generate(inputs["input_ids"], max_length=width + 32, eos_token_id=stop)
    assert torch.equal(bare, outputs)  # the padding is seen without a mask


@needs_golden
@pytest.mark.parametrize("case", GENERATE.get("stop", []), ids=lambda case: case["name"])
def test_official_stops(case: dict[str, Any], official: Loaded) -> None:
    inputs = torch.tensor([case["input_ids"]])
    outputs = official.model.generate(inputs, max_new_tokens=32, eos_token_id=case["eos_token_ids"])
    assert outputs.tolist() == [case["input_ids"] + case["output_ids"]]


@needs_golden
@pytest.mark.parametrize("case", GENERATE.get("repetition_penalty", []), ids=lambda case: case["name"])
def test_official_penalties(case: dict[str, Any], official: Loaded) -> None:
    outputs = official.model.generate(
        torch.tensor([case["input_ids"]]),
        max_new_tokens=32,
        eos_token_id=GENERATE["eos_token_ids"],
        repetition_penalty=case["repetition_penalty"],
    )
    assert outputs.tolist() == [case["input_ids"] + case["output_ids"]]


def stripped(item: dict[str, Any]) -> dict[str, Any]:
    return {**item, "metadata": item["metadata"].strip(), "content": item["content"].strip()}


@needs_golden
@pytest.mark.parametrize("case", RESPONSES.get("cases", []), ids=lambda case: case["name"])
def test_official_responses(case: dict[str, Any], official: Loaded) -> None:
    history = RESPONSES["histories"][case["history"]]
    before = copy.deepcopy(history)
    response, new_history = official.model.process_response(case["output"], history)
    assert history == before
    assert new_history[: len(history)] == history
    assert json.loads(json.dumps(response)) == response
    if "exception" in case:
        return  # officially an exception; a response that says what was written is all there is to ask
    # Officially a call keeps the spaces that SentencePiece put before its header and content, and a replayed history
    # then has other ids than the model wrote: they are stripped here.
    assert new_history[len(history) :] == [stripped(item) for item in case["added"]]
    value = case["result"].get("value")
    if case["result"]["type"] == "str":
        assert response == value
    elif isinstance(value, dict) and "content" in value:
        assert response == {**value, "content": value["content"].strip()}
    elif "parameters" in response:  # what is not plain literals is not evaluated: see test_reply
        assert response["name"] == case["result"].get("name", (value or {}).get("name"))
        assert value is None or response == value


def test_a_history_may_hold_messages_and_other_keys(taught: Loaded) -> None:
    history = [{**GREETING[0], "id": 7}, Message("assistant", GREETING[1]["content"])]
    response, new_history = taught.model.chat(taught.tokenizer, STORY[0]["content"], history, do_sample=False)
    assert new_history == [{**GREETING[0], "id": 7}, GREETING[1], *STORY]
    assert response == STORY[1]["content"]
    assert history[0] == {**GREETING[0], "id": 7}


def streamed(loaded: Loaded, **options: Any) -> list[tuple[Any, ...]]:
    story = STORY[0]["content"]
    return list(loaded.model.stream_chat(loaded.tokenizer, story, GREETING, do_sample=False, **options))


def test_past_key_values_change_nothing(taught: Loaded) -> None:
    """Officially a turn with past_key_values has `[gMASK] sop` in the middle of its prompt, and other answers."""
    plain = streamed(taught)
    *_, (_, history, past) = taught.model.stream_chat(
        taught.tokenizer, GREETING[0]["content"], [], do_sample=False, return_past_key_values=True
    )
    assert history == GREETING
    assert streamed(taught, past_key_values=past) == plain
    assert streamed(taught, past_key_values=None) == plain
    *_, (_, _, foreign) = taught.model.stream_chat(
        taught.tokenizer, "Hello!", do_sample=False, max_new_tokens=2, return_past_key_values=True
    )
    assert streamed(taught, past_key_values=foreign) == plain


def test_a_next_turn_computes_only_what_is_new(taught: Loaded) -> None:
    computed: list[int] = []
    embedding = taught.model.transformer.embedding.word_embeddings
    embedding.register_forward_hook(lambda module, inputs, output: computed.append(inputs[0].numel()))
    _, history = taught.model.chat(taught.tokenizer, GREETING[0]["content"], [], do_sample=False)
    first = sum(computed)  # the prompt and the answer, which are all in the next prompt again
    computed.clear()
    assert streamed(taught)[-1][1][:2] == history
    prompt = taught.tokenizer.build_chat_input(STORY[0]["content"], GREETING).input_ids.shape[1]
    assert computed[0] == prompt - first


def test_a_stream_grows_by_whole_characters(taught: Loaded) -> None:
    texts = [response for response, _ in streamed(taught)]
    assert texts[0] == "👋"
    assert all(later.startswith(text) for text, later in pairwise(texts))
    assert all("\ufffd" not in text for text in texts)


def test_every_step_has_a_history_of_its_own(taught: Loaded) -> None:
    histories = [history for _, history in streamed(taught)]
    histories[0][0]["content"] = "changed"
    assert histories[1][0] == GREETING[0] == {"role": "user", "content": "你好"}


def test_an_answer_cut_short_streams_its_only_token(taught: Loaded) -> None:
    steps = list(taught.model.stream_chat(taught.tokenizer, "Hello!", do_sample=False, max_new_tokens=1))
    assert steps
    assert steps[-1][1][-1]["role"] == "assistant"


def test_max_length_counts_the_prompt(taught: Loaded) -> None:
    tokenizer, ids = taught.tokenizer, taught.tokenizer.build_chat_input("你好").input_ids
    prompt = ids.shape[1]
    _, history = taught.model.chat(tokenizer, "你好", do_sample=False, max_length=prompt + 4)
    wrote = tokenizer.decode(taught.model.generate(ids, max_length=prompt + 4)[0, prompt:])
    assert history[-1]["content"] == wrote.strip()
    with pytest.raises(
        ContextLengthError, match=f"the prompt has {prompt} tokens and max_length {prompt} leaves no room"
    ):
        taught.model.chat(tokenizer, "你好", max_length=prompt)
    with pytest.raises(ContextLengthError, match="and the context of 512 leaves no room for an answer"):
        taught.model.chat(tokenizer, "你好" * 600)


def test_sampling_is_repeatable_with_a_seed(taught: Loaded) -> None:
    options = {"temperature": 5.0, "top_p": 1.0, "top_k": 0, "max_new_tokens": 12}
    first, again, other = (taught.model.chat(taught.tokenizer, "你好", **options, seed=seed)[0] for seed in (1, 1, 2))
    assert first == again != other


def test_ids_without_a_meaning_are_never_generated(taught: Loaded) -> None:
    ids = taught.tokenizer.build_chat_input("你好").input_ids
    vocab_size = taught.tokenizer.vocab_size
    assert taught.model.config.padded_vocab_size > vocab_size
    outputs = taught.model.generate(
        ids.expand(8, -1), max_new_tokens=40, do_sample=True, temperature=50.0, top_k=0, eos_token_id=[]
    )
    assert outputs.shape == (8, ids.shape[1] + 40)
    assert outputs.max() < vocab_size


def test_beams(taught: Loaded) -> None:
    response, _ = taught.model.chat(taught.tokenizer, "你好", num_beams=2, do_sample=False)
    assert response == GREETING[1]["content"]
    with pytest.warns(UserWarning, match="beam search does not sample"):
        taught.model.chat(taught.tokenizer, "你好", num_beams=2)


class InvalidScoreLogitsProcessor:
    """As the official scripts define it; what it does is of no importance."""


def test_the_scripts_own_processor_is_not_needed(taught: Loaded) -> None:
    processors = [InvalidScoreLogitsProcessor()]
    response, _ = taught.model.chat(taught.tokenizer, "你好", do_sample=False, logits_processor=processors)
    assert response == GREETING[1]["content"]
    assert len(processors) == 1  # officially one more is appended to the caller's list


IDS = torch.tensor([[5, 6, 7]])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m, t: m.chat(t, ""), MessageError, "the query is empty"),
        (lambda m, t: m.stream_chat(t, ""), MessageError, "the query is empty"),
        (lambda m, t: m.chat(t, "x", [("a", "b")]), MessageError, "pair of the first ChatGLM"),
        (lambda m, t: m.chat(t, "x", role="tool"), MessageError, "unknown role 'tool'"),
        (lambda m, t: m.chat(t, "x", role="observation"), MessageError, "comes before any assistant turn"),
        (lambda m, t: m.chat(t, "x", logits_processor=[print]), SamplingError, "logits_processor holds a builtin_"),
        (lambda m, t: m.generate(IDS, logits_processor=[print]), SamplingError, "logits_processor holds a builtin_"),
        (lambda m, t: m.chat(t, "x", tempreature=1), SamplingError, "unknown sampling parameter 'tempreature'"),
        (lambda m, t: m.stream_chat(t, "x", stop=["a"]), SamplingError, "stop has no place in the official calls"),
        (lambda m, t: m.chat(t, "x", temperature=-1.0), SamplingError, "temperature must be a number"),
        (
            lambda m, t: m.chat(t, "x", max_length="8192"),
            SamplingError,
            "max_length must be a whole number, not '8192'",
        ),
        (lambda m, t: m.chat(t, "x", max_new_tokens=9999), ContextLengthError, "max_new_tokens is 9999"),
        (lambda m, t: m.chat(t.tokenizer, "x"), TypeError, "tokenizer must be one of chatglm3.compat.AutoTokenizer"),
        (lambda m, t: m.stream_chat(t, "x", past_key_values=()), TypeError, "past_key_values must be what stream_chat"),
        (lambda m, t: m.generate(IDS[0]), SamplingError, r"input_ids must be rows of ids \[b, n\], not \[3\]"),
        (
            lambda m, t: m.generate(IDS, attention_mask=torch.tensor([[1, 1, 0]])),
            SamplingError,
            "in each row its zeros",
        ),
        (
            lambda m, t: m.generate(IDS, position_ids=torch.tensor([[1, 2, 3]])),
            SamplingError,
            "position_ids must count",
        ),
        (lambda m, t: m.generate(IDS, num_return_sequences=2), SamplingError, "unknown sampling parameter 'num_return"),
    ],
)
def test_what_cannot_be_done_is_said(
    call: Callable[[Any, Any], Any], error: type[Exception], message: str, taught: Loaded
) -> None:
    history = [dict(SYSTEM)]
    with pytest.raises(error, match=message) as caught:
        call(taught.model, taught.tokenizer)
    assert "\n" not in str(caught.value)
    assert history == [SYSTEM]
