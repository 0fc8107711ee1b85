"""JSON that a model which knows nothing writes under a schema, in the pieces of three tokenizers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from chatglm3.errors import SamplingError
from chatglm3.grammar.compiler import Grammar, GrammarCompiler
from chatglm3.grammar.json_schema import Vocabulary
from chatglm3.tokenizer import Tokenizer
from grammar_answers import RandomWriter, read_back

OBJECT = {"type": "object", "additionalProperties": False}
FORMATS = [{"type": "string", "format": name} for name in ("uuid", "ipv4", "time")]


def array(items: object, least: int = 0, most: int = 4) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


SCHEMAS: dict[str, dict[str, Any]] = {
    "enum in Chinese": {"enum": ["正面", "负面", "中性（无）", "👍🏽", 'say "hi"', "a\\b", 1, 2.5, None, True]},
    "const": {"const": {"类别": ["正面", 1], "a": None}},
    "strings": array({"type": "string", "minLength": 1, "maxLength": 4}),
    "a pattern": {"type": "string", "pattern": "^[一-龥]{2,4}(省|市)\\d{1,3}$"},
    "formats": array({"anyOf": FORMATS}),
    "integers": array({"type": "integer", "minimum": -20, "exclusiveMaximum": 1000}, least=2),
    "numbers": array({"type": "number", "exclusiveMinimum": 0.05, "maximum": 0.35}),
    "multiples": array({"type": "integer", "multipleOf": 7, "minimum": 0}),
    "any number": array({"type": "number"}, least=1),
    "a tuple": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "null"}], "items": False, "minItems": 2},
    "optional fields": {
        "type": "object",
        "properties": {"甲": {"type": "string"}, "b/c": {"type": "null"}, 'd"': {"type": "boolean"}, "e": {}},
        "required": ["b/c"],
        "additionalProperties": False,
    },
    "nested": {
        "type": "object",
        "properties": {
            "商品": {
                **OBJECT,
                "properties": {"名称": {"type": "string", "maxLength": 6}, "价格": {"type": "number", "minimum": 0}},
                "required": ["名称", "价格"],
            },
            "标签": {"type": "array", "items": {"type": "string", "maxLength": 3}, "minItems": 1, "maxItems": 3},
        },
        "required": ["商品", "标签"],
    },
    "an open object": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "a\nb": {"type": "integer"}},
        "required": ["a", "a\nb"],
        "additionalProperties": {"type": "string", "maxLength": 3},
        "maxProperties": 4,
    },
    "a map": {
        "type": "object",
        "patternProperties": {"^k_": {"type": "integer"}},
        "additionalProperties": {"type": "null"},
    },
    "a recursive one": {
        "$ref": "#/$defs/node",
        "$defs": {
            "node": {
                **OBJECT,
                "properties": {
                    "名": {"type": "string", "maxLength": 2},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 2},
                },
                "required": ["名", "children"],
            }
        },
    },
    "laid over each other": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"a": {"minimum": 3, "maximum": 12}, "b": {"type": "string", "maxLength": 2}}},
        ]
    },
    "one of two": {
        "oneOf": [
            {**OBJECT, "properties": {"kind": {"const": "a"}, "x": {"type": "null"}}, "required": ["kind"]},
            {**OBJECT, "properties": {"kind": {"const": "b"}, "y": {"type": "null"}}, "required": ["kind"]},
        ]
    },
    "anything": {},
}


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer)


def compiled(compiler: GrammarCompiler, schema: object, *, chat: bool = True) -> Grammar:
    grammar = compiler.compile(choices=None, json_schema=schema, chat=chat)
    assert grammar is not None
    return grammar


@pytest.mark.parametrize("name", SCHEMAS)
def test_what_is_written_is_valid_under_the_schema(tokenizer: Tokenizer, compiler: GrammarCompiler, name: str) -> None:
    schema = SCHEMAS[name]
    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    ends = 0
    for chat in (True, False):
        grammar = compiled(compiler, schema, chat=chat)
        for seed in range(6):
            ids = RandomWriter(tokenizer, seed).write(grammar.start(), forced=True)
            assert ids == RandomWriter(tokenizer, seed).write(grammar.start(), forced=False)
            if ids is not None:
                ends += 1
                value = json.loads(text := read_back(tokenizer, ids, chat=chat))
                validator.validate(value)
                text.encode()
    assert ends >= 6


def test_the_layout_is_that_of_json_dumps(nano_tokenizer: Tokenizer) -> None:
    grammar = compiled(GrammarCompiler(nano_tokenizer), SCHEMAS["nested"])
    for seed in range(8):
        ids = RandomWriter(nano_tokenizer, seed).write(grammar.start(), forced=False)
        assert ids is not None
        text = read_back(nano_tokenizer, ids, chat=True)
        outside_strings = "".join(text.split('"')[::2]) if "\\" not in text else ""
        assert "  " not in outside_strings and "\n" not in outside_strings


def test_every_piece_that_a_string_may_hold_is_allowed_in_one_and_no_other_id(tokenizer: Tokenizer) -> None:
    """Control ids, ids without a meaning and second spellings never are."""
    state = compiled(GrammarCompiler(tokenizer), {"type": "string"}, chat=False).start()
    for token_id in tokenizer.encode_continuation('"'):
        state.accept(token_id)
    allowed = set(np.flatnonzero(state.allowed()).tolist())
    pieces = {i: tokenizer.piece(i) for i in range(tokenizer.n_pieces) if tokenizer.byte_value(i) is None}
    harmless = {
        i for i, piece in pieces.items() if i > 2 and not set(piece) & {'"', "\\", "\x7f"} and piece.isprintable()
    }
    assert harmless <= allowed
    assert not allowed & {0, 1, *tokenizer.stop_ids, *range(tokenizer.n_pieces, tokenizer.vocab_size)}
    single = {piece for piece in pieces.values() if len(piece) == 1}
    for token_id in range(tokenizer.n_pieces):
        value = tokenizer.byte_value(token_id)
        if value is not None and value < 0x80 and chr(value) in single:
            assert token_id not in allowed
        if value is not None and 0xC2 <= value <= 0xF4:
            assert token_id in allowed
        if value is not None and 0x80 <= value < 0xC2:
            assert token_id not in allowed


def test_byte_pieces_compose_whole_characters_only(tiny_tokenizer: Tokenizer) -> None:
    t = tiny_tokenizer
    state = compiled(GrammarCompiler(t), {"type": "string", "maxLength": 1}, chat=False).start()
    ids = t.encode_continuation('"🦄"')
    values = [t.byte_value(i) for i in ids]
    assert [v for v in values if v is not None] == list("🦄".encode())
    for token_id in ids:
        assert state.allowed()[token_id]
        continuing = {t.byte_value(int(i)) for i in np.flatnonzero(state.allowed())}
        if 0xF0 <= (values[ids.index(token_id) - 1] or 0) < 0xF5:
            assert continuing <= set(range(0x80, 0xC0))
        state.accept(token_id)
    assert state.finished


def test_what_the_schema_fixes_is_forced(official_tokenizer: Tokenizer) -> None:
    t = official_tokenizer
    schema = {"type": "object", "properties": {"情感": {"enum": ["正面", "负面"]}}, "required": ["情感"]}
    state = compiled(GrammarCompiler(t), schema).start()
    run = state.forced()
    whole = t.encode("\n") + t.encode('{"情感": "正面"}')
    assert run == whole[: len(run)]
    assert len(run) >= 6
    for token_id in run:
        assert state.allowed()[token_id]
        state.accept(token_id)


def test_states_of_one_grammar_do_not_touch(nano_tokenizer: Tokenizer) -> None:
    grammar = compiled(GrammarCompiler(nano_tokenizer), SCHEMAS["nested"])
    states = [grammar.start() for _ in range(4)]
    alone = [RandomWriter(nano_tokenizer, seed).write(grammar.start(), forced=True) for seed in range(4)]
    together = [RandomWriter(nano_tokenizer, seed).write(state, forced=True) for seed, state in enumerate(states)]
    assert alone == together


def test_a_token_that_is_not_allowed_is_an_error_of_one_line(nano_tokenizer: Tokenizer) -> None:
    state = compiled(GrammarCompiler(nano_tokenizer), {"type": "boolean"}, chat=False).start()
    with pytest.raises(SamplingError, match="can go on from here") as caught:
        state.accept(nano_tokenizer.encode_continuation("x")[0])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": "x"}',
        '{"a": 1, "a": "x"}',
        '{"b": "x", "a": "x"}',
        '{"\\u0061": "x"}',
        '{"b": "\\ud800"}',
        '{"b":  "x"}',
        '{ "b": "x"}',
        '{"b": "x"} ',
        '{"b": "a\tb"}',
    ],
)
def test_no_second_spelling_slips_past_the_schema(nano_tokenizer: Tokenizer, text: str) -> None:
    """A name spelled with escapes or written twice, half a character, whitespace, raw control characters."""
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "additionalProperties": {"type": "string"},
    }
    assert writable(nano_tokenizer, schema, '{"a": 1, "b": "x"}')
    assert not writable(nano_tokenizer, schema, text)


def writable(tokenizer: Tokenizer, schema: object, text: str) -> bool:
    """Whether an answer can be `text`, in whatever pieces."""
    state, tokens = compiled(GrammarCompiler(tokenizer), schema, chat=False).start(), Vocabulary(tokenizer).tokens
    rest = text.encode()
    while rest and not state.finished:
        fitting = [i for i in np.flatnonzero(state.allowed()).tolist() if tokens[i] and rest.startswith(tokens[i])]
        if not fitting:
            return False
        token_id = max(fitting, key=lambda i: len(tokens[i]))
        state.accept(token_id)
        rest = rest[len(tokens[token_id]) :]
    return state.finished and not rest
