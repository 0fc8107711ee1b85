"""Templates: what a prompt may say, and what a row must have for it."""

from __future__ import annotations

import pytest

from chatglm3.bulk.template import Template
from chatglm3.errors import DataError, JobError
from chatglm3.tables import BadRow, Row


def filled(prompt: str, row: Row) -> str:
    template = Template.parse(prompt)
    return template.fill(template.values(row))


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("{a}", "x"),
        ("say {a}, {b} and {a}.", "say x, 好 and x."),
        ("{{a}} is {a}", "{a} is x"),
        ('{{"k": {n}}}', '{"k": 1.5}'),
        ("{列 名}|{a.b}|{a!r}", "1|2|3"),
        ("{list}{yes}", '["好", null]true'),
    ],
)
def test_values_go_where_their_column_is_named(prompt: str, text: str) -> None:
    row: Row = {"a": "x", "b": "好", "n": 1.5, "列 名": "1", "a.b": "2", "a!r": "3", "list": ["好", None], "yes": True}
    assert filled(prompt, row) == text


def test_a_value_is_not_a_template() -> None:
    assert filled("{a}", {"a": "{b} {{ }} {0.__class__}", "b": "no"}) == "{b} {{ }} {0.__class__}"


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("a {", "a '{' at character 3"),
        ("{a} } b", "a '}' at character 5"),
        ("{}", "a '{}' at character 1"),
        ("{a {b}", "a '{' at character 1"),
        ("no place", "names no {column}"),
        ("{{a}}", "names no {column}"),
    ],
)
def test_what_is_no_template(prompt: str, words: str) -> None:
    with pytest.raises(JobError) as caught:
        Template.parse(prompt)
    assert words in str(caught.value)


def test_a_missing_column_is_named_with_those_there_are() -> None:
    with pytest.raises(JobError, match="the prompt names the column 'text'; the columns are 'id', 'a, b'"):
        Template.parse("{id} {text}").check({"id": 1, "a, b": 2})


@pytest.mark.parametrize("row", [{}, {"a": None}])
def test_a_row_without_a_value(row: Row) -> None:
    with pytest.raises(DataError, match="no value for the column 'a'"):
        Template.of_column("a").values(row)


@pytest.mark.parametrize("row", [{"a": "", "b": ""}, {"a": " \n", "b": "\u3000"}])
def test_a_row_of_blank_values_asks_nothing(row: Row) -> None:
    with pytest.raises(DataError, match="the text is empty"):
        filled("评论：{a}，{b}", row)


def test_an_empty_text_is_a_value_beside_another_one_and_a_bad_row_has_none() -> None:
    assert filled("{a}|{b}", {"a": "", "b": 0}) == "|0"
    with pytest.raises(DataError, match="line 3 is not JSON"):
        Template.of_column("a").values(BadRow({"a": "x"}, "line 3 is not JSON"))


def test_values_are_cut_to_the_same_length_until_they_fit() -> None:
    template = Template.parse("[{a}|{b}]")
    assert template.fill_within(["12345", "12"], lambda text: len(text) <= 8) == "[123|12]"
    assert template.fill_within(["12345", "12"], lambda text: len(text) <= 10) == "[12345|12]"
    assert template.fill_within(["12345", "12"], lambda text: len(text) <= 3) == "[12345|12]"
    assert template.fill_within(["   45", ""], lambda text: len(text) <= 6) == "[   45|]"
