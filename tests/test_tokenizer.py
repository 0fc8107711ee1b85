from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from chatglm3.errors import TokenizerError
from chatglm3.prompt import completion_prompt
from chatglm3.tokenizer import CONTROL_TOKENS, StreamDecoder, Tokenizer
from golden import OFFICIAL, golden_json, needs_golden

GOLDEN: dict[str, Any] = golden_json("tokenization.json")


@st.composite
def id_lists(draw: st.DrawFn, vocab_size: int) -> list[int]:
    """Bytes, ordinary pieces, control ids, and ids without a meaning."""
    ids = st.one_of(
        st.integers(3, 258),
        st.integers(3, vocab_size - 1),
        st.integers(vocab_size - 9, vocab_size - 1),
        st.integers(0, vocab_size + 300),
        st.just(-100),
    )
    return draw(st.lists(ids, max_size=40))


@needs_golden
def test_properties_and_names_are_official(official_tokenizer: Tokenizer) -> None:
    properties = GOLDEN["properties"]
    assert official_tokenizer.vocab_size == properties["vocab_size"]
    assert official_tokenizer.pad_id == properties["pad_token_id"]
    assert official_tokenizer.eos_id == properties["eos_token_id"]
    assert {name: official_tokenizer.token_id(name) for name in properties["commands"]} == properties["commands"]
    assert official_tokenizer.newline_id == 13
    assert official_tokenizer.stop_ids == (2, 64795, 64797)


@needs_golden
def test_every_text_encodes_and_decodes_as_officially(official_tokenizer: Tokenizer) -> None:
    # `piece_decoded` is the official inner decoder, which the official chat never calls; it is not offered.
    assert len(GOLDEN["cases"]) > 600
    for case in GOLDEN["cases"]:
        assert official_tokenizer.encode(case["text"]) == case["ids"]
        assert completion_prompt(official_tokenizer, case["text"]) == case["call_ids"]
        assert official_tokenizer.decode(case["ids"]) == case["decoded"]
        assert official_tokenizer.decode(case["call_ids"]) == case["call_decoded"]


@needs_golden
def test_every_id_list_decodes_as_officially(official_tokenizer: Tokenizer) -> None:
    for case in GOLDEN["decode_cases"]:
        assert official_tokenizer.decode(case["ids"]) == case["decoded"]


@needs_golden
def test_skip_special_tokens_is_honoured_where_the_official_code_ignores_it(official_tokenizer: Tokenizer) -> None:
    # The official tokenizer declares no special tokens, so its switch removes nothing. Ours removes the nine
    # control ids, as a caller who sets it expects; where there are none, both agree.
    removed = 0
    for case in GOLDEN["decode_cases"]:
        assert case["decoded_skip_special"] == case["decoded"]
        text = official_tokenizer.decode(case["ids"], skip_special_tokens=True)
        plain = [i for i in case["ids"] if not 64789 <= i <= 64797]
        assert text == official_tokenizer.decode(plain)
        removed += text != case["decoded"]
        assert text == case["decoded"] or len(plain) < len(case["ids"])
    assert removed > 20


@needs_golden
def test_trusted_text_may_speak_for_roles(official_tokenizer: Tokenizer) -> None:
    prefix = [official_tokenizer.gmask_id, official_tokenizer.sop_id]
    for case in GOLDEN["encode_special_tokens_cases"]:
        assert prefix + official_tokenizer.encode_trusted(case["text"]) == case["call_ids"]


@needs_golden
@pytest.mark.parametrize("batch", GOLDEN.get("padded_batches", []), ids=lambda batch: str(batch["options"]))
def test_padding_is_official(official_tokenizer: Tokenizer, batch: dict[str, Any]) -> None:
    options = batch["options"]
    rows = [completion_prompt(official_tokenizer, text) for text in batch["texts"]]
    if options.get("truncation"):
        rows = [row[: options["max_length"]] for row in rows]
    length = options["max_length"] if options["padding"] == "max_length" else None
    padded = official_tokenizer.pad(rows, length=length, pad_to_multiple_of=options.get("pad_to_multiple_of"))
    assert padded.input_ids == batch["input_ids"]
    assert padded.attention_mask == batch["attention_mask"]
    assert padded.position_ids == batch["position_ids"]


def test_padding_of_few_rows(tiny_tokenizer: Tokenizer) -> None:
    padded = tiny_tokenizer.pad([[5], [6, 7, 8]], length=3, pad_to_multiple_of=4)
    assert padded.input_ids == [[0, 0, 0, 5], [0, 6, 7, 8]]
    assert padded.attention_mask == [[0, 0, 0, 1], [0, 1, 1, 1]]
    assert padded.position_ids == [[0, 0, 0, 0], [0, 0, 1, 2]]
    assert tiny_tokenizer.pad([]).input_ids == []
    with pytest.raises(TokenizerError, match="3 ids and cannot be padded to 2"):
        tiny_tokenizer.pad([[6, 7, 8]], length=2)


def test_control_ids_follow_the_pieces_of_any_model(tiny_tokenizer: Tokenizer) -> None:
    first = tiny_tokenizer.n_pieces
    assert 300 < first <= 400
    assert [tiny_tokenizer.token_id(name) for name in CONTROL_TOKENS] == list(range(first, first + 9))
    assert tiny_tokenizer.vocab_size == first + 9
    assert tiny_tokenizer.newline_id == 13
    trusted = tiny_tokenizer.encode_trusted("<|user|>x<|assistant|>")
    assert (trusted[0], trusted[-1]) == (tiny_tokenizer.user_id, tiny_tokenizer.assistant_id)
    assert tiny_tokenizer.role_id("observation") == tiny_tokenizer.observation_id == first + 8


@given(data=st.data())
def test_no_text_yields_a_control_id(any_tokenizer: Tokenizer, data: st.DataObject) -> None:
    markers = st.sampled_from([*CONTROL_TOKENS, "</s>", "<s>", "<unk>", "<0x0A>", "<|", "|>", "\n"])
    text = "".join(data.draw(st.lists(st.text(max_size=8) | markers, max_size=8)))
    ids = any_tokenizer.encode(text)
    assert all(2 < i < any_tokenizer.n_pieces for i in ids)
    assert any_tokenizer.decode(ids) == text.replace("\u2581", " ")


@given(text=st.text(max_size=12))
def test_a_continuation_has_no_leading_space(any_tokenizer: Tokenizer, text: str) -> None:
    ids = any_tokenizer.encode("ok") + any_tokenizer.encode_continuation(text)
    assert any_tokenizer.decode(ids) == "ok" + text.replace("\u2581", " ")


@given(data=st.data())
def test_streamed_pieces_are_the_decoded_text(any_tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(id_lists(any_tokenizer.vocab_size))
    decoder = StreamDecoder(any_tokenizer)
    streamed = "".join([decoder.push(i) for i in ids]) + decoder.flush()
    pieces = sentencepiece.SentencePieceProcessor(model_proto=pickle_bytes(any_tokenizer))
    assert streamed == any_tokenizer.decode(ids) == pieces.decode([any_tokenizer.piece(i) for i in ids])


@given(data=st.data())
def test_a_stream_never_shows_half_a_character(any_tokenizer: Tokenizer, data: st.DataObject) -> None:
    text = data.draw(st.text(max_size=20)).replace("\ufffd", "")
    ids = [byte + 3 for byte in text.encode()] if data.draw(st.booleans()) else any_tokenizer.encode(text)
    decoder = StreamDecoder(any_tokenizer)
    assert "\ufffd" not in "".join(map(decoder.push, ids))
    assert decoder.flush() == ""


def test_a_stream_keeps_a_broken_tail_until_flushed(tiny_tokenizer: Tokenizer) -> None:
    decoder = StreamDecoder(tiny_tokenizer)
    wave = [byte + 3 for byte in "👋".encode()]
    assert [decoder.push(i) for i in wave] == ["", "", "", "👋"]
    assert [decoder.push(i) for i in wave[:3]] == ["", "", ""]
    assert decoder.flush() == "\ufffd" * 3
    assert decoder.flush() == ""
    assert [decoder.push(i) for i in (wave[0], tiny_tokenizer.newline_id)] == ["", ""]  # may still be a character
    assert decoder.push(tiny_tokenizer.user_id) == "\ufffd\n<|user|>"


def test_a_lone_surrogate_is_refused(tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match="lone surrogate at character 2"):
        tiny_tokenizer.encode("ab\ud800")


def test_an_unknown_control_token_is_named(tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(TokenizerError, match=r"no control token '<\|tool\|>'"):
        tiny_tokenizer.role_id("tool")


def test_stray_configuration_changes_nothing(tiny_tokenizer_dir: Path, tiny_tokenizer: Tokenizer) -> None:
    assert (tiny_tokenizer_dir / "tokenizer_config.json").is_file()
    from_file = Tokenizer.from_pretrained(str(tiny_tokenizer_dir / "tokenizer.model"))
    assert from_file.eos_id == 2
    text = "<|user|>\n你好"
    assert from_file.encode(text) == tiny_tokenizer.encode(text)
    assert from_file.user_id not in from_file.encode(text)


@needs_golden
def test_both_released_configurations_give_the_same_tokenizer(tmp_path: Path, official_tokenizer: Tokenizer) -> None:
    for config in OFFICIAL.glob("tokenizer_config*.json"):
        folder = tmp_path / config.stem
        folder.mkdir()
        shutil.copy(OFFICIAL / "tokenizer.model", folder)
        shutil.copy(config, folder / "tokenizer_config.json")
        assert Tokenizer.from_pretrained(folder).encode("讲个故事") == official_tokenizer.encode("讲个故事")


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "tokenizer.model", tmp_path / "no-such-folder"):
        with pytest.raises(TokenizerError, match=r"cannot be read .*copy it there"):
            Tokenizer.from_pretrained(path)


def test_a_corrupt_file_is_named(tmp_path: Path, tiny_tokenizer_dir: Path) -> None:
    whole = (tiny_tokenizer_dir / "tokenizer.model").read_bytes()
    glm4 = b"IQ== 0\nIg== 1\nIw== 2\n" * 50  # GLM-4 calls a list of base64 lines by the same name
    for content in (b"", whole[:-5], whole[: len(whole) // 2], b"\0" + whole, glm4):
        (tmp_path / "tokenizer.model").write_bytes(content)
        with pytest.raises(TokenizerError, match=r"tokenizer\.model is not usable: .*copy tokenizer\.model"):
            Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"byte_fallback": False}, "no byte pieces"), ({"bos_id": -1, "eos_id": 1}, "ids 0, 1, 2 are not")],
)
def test_a_model_of_another_family_is_refused(tmp_path: Path, options: dict[str, Any], reason: str) -> None:
    with (tmp_path / "tokenizer.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a b c d e f g"] * 9),
            model_writer=file,
            vocab_size=300,
            hard_vocab_limit=False,
            minloglevel=2,
            **{"byte_fallback": True, "model_type": "bpe", **options},
        )
    with pytest.raises(TokenizerError, match=reason):
        Tokenizer.from_pretrained(tmp_path)


def test_a_tokenizer_travels_between_processes(tiny_tokenizer: Tokenizer) -> None:
    twin = pickle.loads(pickle.dumps(tiny_tokenizer))  # noqa: S301 - our own bytes
    assert twin.encode("你好 hello") == tiny_tokenizer.encode("你好 hello")
    assert twin.vocab_size == tiny_tokenizer.vocab_size


def pickle_bytes(tokenizer: Tokenizer) -> bytes:
    """The content of the tokenizer.model it was made from."""
    return tokenizer.__reduce__()[1][0]
