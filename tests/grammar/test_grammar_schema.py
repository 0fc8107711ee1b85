from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pydantic
import pytest

from chatglm3.errors import SamplingError
from chatglm3.grammar.compiler import GrammarCompiler
from chatglm3.grammar.schema import FORMATS, read_schema
from chatglm3.tokenizer import Tokenizer

STRING = {"type": "string"}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"not": STRING}, "'not' at # cannot be enforced"),
        ({"type": "object", "if": {}, "then": {}, "else": {}}, "'else', 'if', 'then' at #"),
        ({"properties": {"tags": {"type": "array", "uniqueItems": True}}}, "'uniqueItems' at #/properties/tags"),
        ({"type": "array", "contains": STRING}, "'contains' at #"),
        ({"type": "array", "items": {"anyOf": [{}, {"nullable": True}]}}, "'nullable' at #/items/anyOf/1"),
        ({"type": "object", "propertyNames": STRING}, "'propertyNames' at #"),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "'dependentRequired' at #"),
        ({"type": "object", "dependencies": {"a": ["b"]}}, "'dependencies' at #"),
        ({"type": "object", "unevaluatedProperties": False}, "'unevaluatedProperties' at #"),
        ({"type": "array", "items": STRING, "additionalItems": False}, "'additionalItems' at #"),
        ({"$defs": {"a/b": {"minlength": 3}}}, "'minlength' at #/\\$defs/a~1b"),
        ({"$dynamicRef": "#node"}, "'\\$dynamicRef' at #"),
        ({"$anchor": "a"}, "'\\$anchor' at #"),
        ({"items": {"$id": "https://example.com/a"}}, "'\\$id' at #/items"),
        ({"x-guidance": {"lenient": True}, "type": "string"}, "'x-guidance' at #"),
        (
            {"$ref": "https://example.com/schema.json"},
            "\\$ref at # leads out of the schema, to 'https://example.com/sch",
        ),
        ({"$ref": "other.json#/a"}, "leads out of the schema"),
        ({"$ref": 7}, "leads out of the schema, to 7"),
        ({"$ref": "#/$defs/gone"}, "leads to '#/\\$defs/gone', where no schema is"),
        ({"$ref": "#/default", "default": {"not": {}}}, "where no schema is"),
        ({"properties": [STRING]}, "#/properties must be an object, not"),
        ({"anyOf": STRING}, "#/anyOf must be a list, not"),
        ({"items": [STRING]}, "#/items must be an object, true or false, not"),
        ({"properties": {"a": "string"}}, "#/properties/a must be an object, true or false, not 'string'"),
        (
            {"type": "number", "minimum": 1, "exclusiveMinimum": True},
            "exclusiveMinimum at # must be a number, not True",
        ),
        ({"type": "object", "minProperties": 2}, "minProperties at # cannot be enforced above 1"),
        (
            {"items": {"format": "ean"}},
            "format 'ean' at #/items is unknown; use one of date, date-time, duration, email",
        ),
        ({"properties": {"a": {"enum": ["\0"]}}}, "a value at #/properties/a has a control character"),
        ({"const": {"a\x7f": 1}}, "a value at # has a control character"),
        ({"const": "\ud800"}, "it is not JSON \\('utf-8' codec can't encode"),
        ({"const": 2**53 + 1}, "the number 9007199254740993 is too large to be exact"),
        ('{"type": "number", "maximum": NaN}', "it is not JSON \\(NaN is no number there\\)"),
        ({"enum": [float("inf")]}, "it is not JSON"),
        ({"enum": [{1, 2}]}, "it is not JSON \\(Object of type set"),
        ("{'type': 'string'}", "it is not JSON \\(Expecting property name"),
        ("", "it is not JSON"),
        (b"{}", "it is not JSON"),
        ("[]", "it must be an object, not \\[\\]"),
        (True, "it must be an object, not True"),
    ],
    ids=str,
)
def test_what_cannot_be_held_to_is_refused_by_name_and_place(schema: object, message: str) -> None:
    with pytest.raises(SamplingError, match=message) as caught:
        read_schema(schema)
    assert str(caught.value).startswith("json_schema: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "strin"}, "Invalid type: strin"),
        ({"type": "string", "pattern": "(?<=a)b"}, "look-around"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"type": "string", "minLength": -1}, "minLength"),
        ({"type": "string", "minLength": 5, "maxLength": 2}, "minLength"),
        ({"type": "integer", "minimum": 5, "maximum": 2}, "minimum"),
        ({"type": "array", "items": {}, "minItems": 3, "maxItems": 1}, "minItems"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf"),
        ({"enum": []}, "nsatisfiable"),
        ({"type": "integer", "enum": ["a"]}, "nsatisfiable"),
        ({"type": "object", "required": "a"}, "required"),
        ({"properties": {"a": False}, "required": ["a"], "type": "object"}, "nsatisfiable"),
        ({"type": "object", "properties": {}, "required": ["a"], "additionalProperties": False}, "nsatisfiable"),
        (
            {"type": "object", "patternProperties": {"a": {}, "b": {}}},
            "patternProperty regexes /a/ and /b/ are not disjoint",
        ),
        (
            {"type": "object", "properties": {"a": {}, "b": {}}, "maxProperties": 3, "additionalProperties": {}},
            "maxProp",
        ),
    ],
    ids=str,
)
def test_what_the_engine_refuses_is_one_line(tiny_tokenizer: Tokenizer, schema: object, message: str) -> None:
    with pytest.raises(SamplingError, match=message) as caught:
        GrammarCompiler(tiny_tokenizer).compile(choices=None, json_schema=schema, chat=True)
    assert str(caught.value).startswith("json_schema: it cannot be enforced: ")
    assert "\n" not in str(caught.value) and "x-guidance" not in str(caught.value)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]},
        {"type": "string", "pattern": "^\\x00$"},
    ],
    ids=str,
)
def test_a_schema_that_no_json_fits_is_refused_before_any_work(tiny_tokenizer: Tokenizer, schema: object) -> None:
    with pytest.raises(SamplingError, match="no JSON under the schema can go on from here") as caught:
        GrammarCompiler(tiny_tokenizer).compile(choices=None, json_schema=schema, chat=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_known_format_is_one_of_the_engine(tiny_tokenizer: Tokenizer, name: str) -> None:
    schema = {"type": "string", "format": name}
    assert GrammarCompiler(tiny_tokenizer).compile(choices=None, json_schema=schema, chat=True) is not None


def test_a_dict_a_text_and_a_pydantic_model_are_the_same_schema() -> None:
    class Review(pydantic.BaseModel):
        """A review."""

        label: str = pydantic.Field(max_length=8)
        score: int | None = None

    schema = Review.model_json_schema()
    before = json.dumps(schema)
    assert read_schema(Review) == read_schema(schema) == read_schema(json.dumps(schema))
    assert json.dumps(schema) == before


@pytest.mark.parametrize(
    ("schema", "closed"),
    [
        ({"type": "object", "properties": {"a": {}}}, True),
        ({"type": "object", "properties": {"a": {}}, "additionalProperties": STRING}, False),
        ({"type": "object", "properties": {"a": {}}, "patternProperties": {"^x": {}}}, False),
        ({"type": "object"}, False),
        ({"type": "object", "properties": {"a": {}}, "allOf": [{"properties": {"b": {}}}]}, False),
        ({"properties": {"a": {}}, "$ref": "#/$defs/b", "$defs": {"b": {"properties": {"b": {}}}}}, False),
    ],
    ids=str,
)
def test_an_object_that_lists_its_properties_gets_no_others(schema: dict[str, Any], closed: bool) -> None:
    assert (read_schema(schema).get("additionalProperties") is False) == closed


def test_without_the_extra_the_error_names_the_command(tiny_tokenizer_dir: Any) -> None:
    code = f"""
import sys
sys.modules["llguidance"] = None
from chatglm3.grammar.compiler import GrammarCompiler
from chatglm3.tokenizer import Tokenizer
compiler = GrammarCompiler(Tokenizer.from_pretrained({str(tiny_tokenizer_dir)!r}))
assert compiler.compile(choices=["a"], json_schema=None, chat=True) is not None
try:
    compiler.compile(choices=None, json_schema={{}}, chat=True)
except Exception as error:
    print(type(error).__name__, error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("SamplingError json_schema")
    assert 'pip install "chatglm3[grammar]"' in done.stdout
