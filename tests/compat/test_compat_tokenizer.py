from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from chatglm3.compat import AutoTokenizer, BatchEncoding, ChatGLMTokenizer
from chatglm3.errors import MessageError, TokenizerError
from chatglm3.prompt import chat_prompt
from chatglm3.tokenizer import Tokenizer
from golden import golden_json, needs_golden

GOLDEN = golden_json("tokenization.json")
CHAT_INPUTS = golden_json("chat_inputs.json")


@pytest.fixture
def official(official_tokenizer: Tokenizer) -> ChatGLMTokenizer:
    return ChatGLMTokenizer(official_tokenizer)


@pytest.fixture
def tiny(tiny_tokenizer: Tokenizer) -> ChatGLMTokenizer:
    return ChatGLMTokenizer(tiny_tokenizer)


@needs_golden
def test_official_calls(official: ChatGLMTokenizer) -> None:
    for case in GOLDEN["cases"]:
        ids = official(case["text"])["input_ids"]
        assert ids == case["call_ids"] == official.encode(case["text"])
        assert official.encode(case["text"], add_special_tokens=False) == case["ids"]
        assert official.decode(ids) == case["call_decoded"]
    for case in GOLDEN["pair_cases"]:
        assert official(case["text"], case["pair"]).input_ids == case["call_ids"]


@needs_golden
def test_official_batches(official: ChatGLMTokenizer) -> None:
    for case in GOLDEN["padded_batches"]:
        batch = official(case["texts"], **case["options"])
        assert {name: batch[name] for name in case if name in batch} == {
            name: case[name] for name in ("input_ids", "attention_mask", "position_ids")
        }


@needs_golden
def test_official_decoding(official: ChatGLMTokenizer) -> None:
    for case in GOLDEN["decode_cases"]:
        assert official.decode(case["ids"]) == case["decoded"]
        # Officially skip_special_tokens has no effect; here it leaves the control tokens out.
        pieces = [i for i in case["ids"] if not 64789 <= i <= 64797]
        assert official.decode(case["ids"], skip_special_tokens=True) == official.decode(pieces)
        if pieces == case["ids"]:
            assert official.decode(case["ids"], skip_special_tokens=True) == case["decoded_skip_special"]


@needs_golden
def test_the_switch_for_markers_in_trusted_text(official: ChatGLMTokenizer) -> None:
    switched = ChatGLMTokenizer(official.tokenizer, encode_special_tokens=True)
    for case in GOLDEN["encode_special_tokens_cases"]:
        assert switched(case["text"]).input_ids == case["call_ids"]
    official.encode_special_tokens = True
    assert official("<|user|>").input_ids == [64790, 64792, 64795]
    # A chat never reads markers, whatever the switch says.
    assert official.build_chat_input("<|user|>").input_ids.tolist()[0][3:-1].count(64795) == 0


@needs_golden
def test_official_properties(official: ChatGLMTokenizer) -> None:
    properties = GOLDEN["properties"]
    assert len(official) == properties["len"]
    for name in set(properties) - {"len", "commands", "tokenizer_model_sha256"}:
        assert getattr(official, name) == properties[name], name
    for name, token_id in properties["commands"].items():
        assert official.get_command(name) == token_id
    assert official.get_prefix_tokens() == [64790, 64792]


@needs_golden
def test_official_chat_inputs(official: ChatGLMTokenizer) -> None:
    for case in CHAT_INPUTS["cases"]:
        before = copy.deepcopy(case["history"])
        inputs = official.build_chat_input(case["query"], history=case["history"], role=case["role"])
        n = len(case["input_ids"])
        assert inputs["input_ids"].tolist() == [case["input_ids"]]
        assert inputs.attention_mask.tolist() == [[1] * n]
        assert inputs.position_ids.tolist() == [list(range(n))]
        assert case["history"] == before
        # The official template spells its control tokens as plain text; here it gives the ids of the chat.
        if case["history"] is not None:
            query = {"role": case["role"], "content": case["query"]}
            ids = official.apply_chat_template([*case["history"], query], add_generation_prompt=True)
            assert ids == case["input_ids"]
    for case in CHAT_INPUTS["single_messages"]:
        assert official.build_single_message(case["role"], case["metadata"], case["message"]) == case["ids"]
    for case in CHAT_INPUTS["error_cases"]:
        with pytest.raises(MessageError):
            official.build_chat_input(case["query"], history=case["history"], role=case["role"])


def test_tensors_arrays_and_lists(tiny: ChatGLMTokenizer) -> None:
    assert isinstance(tiny("你好")["input_ids"][0], int)
    assert isinstance(tiny(["你好"])["input_ids"][0], list)
    assert tiny("你好", return_tensors="pt").input_ids.shape == (1, len(tiny("你好").input_ids))
    array = tiny(["你好", "Hello!"], return_tensors="np", padding=True)["attention_mask"]
    assert isinstance(array, np.ndarray)
    assert array.shape == (2, max(len(tiny("你好").input_ids), len(tiny("Hello!").input_ids)))
    assert tiny(["你好", "a b c"]).input_ids == [tiny("你好").input_ids, tiny("a b c").input_ids]


def test_an_encoding_is_a_dict_that_moves(tiny: ChatGLMTokenizer) -> None:
    encoding = tiny("你好", return_tensors="pt")
    assert dict(**encoding).keys() == {"input_ids", "attention_mask", "position_ids"}
    assert encoding.to("meta") is encoding
    assert encoding.input_ids.device == torch.device("meta")
    assert isinstance(copy.deepcopy(tiny("你好")), BatchEncoding)
    with pytest.raises(AttributeError, match="the encoding has no 'token_type_ids'; it has input_ids, "):
        _ = encoding.token_type_ids


def test_the_template_in_its_forms(tiny: ChatGLMTokenizer) -> None:
    messages = [{"role": "system", "content": "Hello!"}, {"role": "user", "content": "你好"}]
    ids = chat_prompt(tiny.tokenizer, [])[:2] + tiny.build_single_message("system", "", "Hello!")
    ids += tiny.build_single_message("user", "", "你好")
    assert tiny.apply_chat_template(messages) == ids
    tensor = tiny.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    assert tensor.tolist() == [[*ids, tiny.get_command("<|assistant|>")]]
    encoding = tiny.apply_chat_template(messages, return_dict=True)
    assert encoding.attention_mask == [1] * len(ids)
    assert tiny.apply_chat_template(messages, tokenize=False) == tiny.decode(ids)


def test_tokens_and_ids(tiny: ChatGLMTokenizer) -> None:
    pieces = tiny.tokenize("你好 Hello!")
    ids = tiny.encode("你好 Hello!", add_special_tokens=False)
    assert tiny.convert_tokens_to_ids(pieces) == ids
    assert tiny.convert_ids_to_tokens(ids) == pieces
    assert tiny.convert_tokens_to_ids("<|user|>") == tiny.get_command("<|user|>")
    assert [tiny.convert_tokens_to_ids(name) for name in ("</s>", "<s>", "<unk>", "no such piece")] == [2, 1, 0, 0]
    assert tiny.get_vocab()["sop"] == tiny.get_command("sop")
    assert tiny.convert_ids_to_tokens(tiny.get_command("sop")) == "sop"


def test_what_can_be_decoded(tiny: ChatGLMTokenizer) -> None:
    ids = tiny.encode("你好", add_special_tokens=False)
    assert tiny.decode(ids) == tiny.decode(torch.tensor(ids)) == tiny.decode(np.array(ids)) == "你好"
    assert tiny.decode(ids[-1]) == tiny.decode(torch.tensor(ids[-1])) == tiny.decode([ids[-1]])
    assert tiny.batch_decode(torch.tensor([ids, ids])) == ["你好", "你好"]
    with_role = [tiny.get_command("<|user|>"), *ids]
    assert tiny.decode(with_role, skip_special_tokens=True) == "你好"
    assert "<|user|>" in tiny.decode(with_role)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda t: t(["a", "a b c d"], return_tensors="pt"),
            "rows of different lengths make no tensor; .*padding=True",
        ),
        (lambda t: t("a", return_tensors="tf"), "return_tensors must be 'pt', 'np' or None, not 'tf'"),
        (lambda t: t("a", truncation=True), "truncation needs max_length"),
        (lambda t: t("a", padding="max_length"), "padding='max_length' needs max_length"),
        (lambda t: t("a", padding="right"), "padding must be True, 'longest', 'max_length' or False, not 'right'"),
        (lambda t: t(["a", "b"], ["c"]), "2 texts and 1 text pairs do not go together"),
        (lambda t: t(["a", None]), "a text must be a string, not NoneType"),
        (lambda t: t.get_command("<|tool|>"), "there is no control token '<|tool|>'"),
        (lambda t: t("a b c d", padding="max_length", max_length=3), "a row has .* ids and cannot be padded to 3"),
    ],
)
def test_what_cannot_be_done_is_said(
    call: Callable[[ChatGLMTokenizer], Any], message: str, tiny: ChatGLMTokenizer
) -> None:
    message = message.replace("|", r"\|")
    with pytest.raises(TokenizerError, match=message):
        call(tiny)


def test_loading(tiny_tokenizer_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_tokenizer_dir), trust_remote_code=True)
    assert tokenizer.encode_special_tokens is False  # tokenizer_config.json cannot switch it on
    assert AutoTokenizer.from_pretrained(tiny_tokenizer_dir, encode_special_tokens=True).encode_special_tokens
    with pytest.raises(TypeError, match="use_magic"):
        AutoTokenizer.from_pretrained(tiny_tokenizer_dir, use_magic=True)  # type: ignore[call-arg]
