"""Rows that cannot be, and jobs that cannot be: the former have their error, the latter are refused before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import chatglm3
from bulk.reviews import EXAMPLES, read, write
from chatglm3 import bulk
from chatglm3.errors import DataError, JobError, MessageError

SHORT: Any = {"max_new_tokens": 4}


def test_bad_rows_have_their_error_and_stop_nothing(tmp_path: Path, nano: chatglm3.ChatGLM) -> None:
    lines = [
        '{"review": "很好"}',
        "not json",
        "[1]",
        '{"other": 1}',
        '{"review": null}',
        '{"review": NaN}',
        '{"review": ""}',
    ]
    lines += [json.dumps({"review": "半\ud83d"}), json.dumps({"review": "长" * 20_000}), '{"review": "太吵了"}']
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    summary = bulk.run(path, tmp_path / "out.jsonl", model=nano, column="review", **SHORT)
    rows = read(tmp_path / "out.jsonl")
    assert [bool(row["error"]) for row in rows] == [False, *[True] * 8, False]
    words = ["is not JSON", "not a JSON object", "no value", "no value", "no value", "empty", "surrogate", "context"]
    assert all(word in row["error"] for word, row in zip(words, rows[1:9], strict=True)), [r["error"] for r in rows]
    assert rows[8]["error"].endswith("ask for fewer tokens, or cut such rows with --truncate")
    assert all(row["answer"] is None and row["finish_reason"] is None for row in rows[1:9])
    assert rows[3]["other"] == 1 and rows[7]["review"] == "半\ud83d"
    assert (summary.rows, summary.errors, len(summary.first_errors)) == (10, 8, 5)
    assert summary.first_errors[0] == (2, rows[1]["error"])


def test_nobody_is_asked_about_nothing(tmp_path: Path, nano: chatglm3.ChatGLM, nano_base: chatglm3.ChatGLM) -> None:
    path = write(tmp_path / "in.jsonl", [{"a": "", "b": " "}, {"a": "", "b": "好"}])
    words: Any = {"prompt": "评论：{a}{b}"}
    for name, glm in (("chat", nano), ("base", nano_base)):
        bulk.run(path, tmp_path / f"{name}.jsonl", model=glm, **words, **SHORT)
        bulk.classify(path, tmp_path / f"{name}_labels.jsonl", model=glm, labels=["正面", "负面"], **words)
        for output in (f"{name}.jsonl", f"{name}_labels.jsonl"):
            assert [row["error"] for row in read(tmp_path / output)] == ["the text is empty", None]


def test_a_value_is_not_cut_to_nothing(tmp_path: Path, nano: chatglm3.ChatGLM) -> None:
    path = write(tmp_path / "in.jsonl", [{"a": " " * 2000 + "好" * 5000}])
    room = nano.engine.max_context - len(nano.tokenizer.encode("评" * 50)) - 60
    bulk.run(path, tmp_path / "out.jsonl", model=nano, prompt="评" * 50 + "{a}", max_new_tokens=room, truncate=True)
    row = read(tmp_path / "out.jsonl")[0]
    assert row["answer"] is None and "context" in row["error"] and "--truncate" not in row["error"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            {"max_new_tokens": 100_000},
            r"no row can fit: without a value the prompt has 6 tokens and 100000 must be free",
        ),
        ({"max_new_tokens": 100_000, "truncate": True}, "no row can fit"),
        ({"system": "长话" * 20_000}, "no row can fit: .* ask for fewer tokens with --max-new-tokens, or shorten"),
        ({"banned": [1_000_000]}, "token id 1000000 is not in the vocabulary"),
        ({"history": [{"role": "observation", "content": "x"}]}, "an observation comes before any assistant turn"),
    ],
)
def test_what_fails_for_every_row_is_refused_before_the_first(
    tmp_path: Path, nano: chatglm3.ChatGLM, words: dict[str, Any], message: str
) -> None:
    computed = nano.engine.counters.computed_tokens
    with pytest.raises(chatglm3.ChatGLMError, match=message):
        bulk.run(EXAMPLES, tmp_path / "out.jsonl", model=nano, column="review", **words)
    assert not list(tmp_path.iterdir()) and nano.engine.counters.computed_tokens == computed


def test_no_text_can_be_labelled_where_all_that_comes_before_it_is_too_long(
    tmp_path: Path, nano: chatglm3.ChatGLM, nano_base: chatglm3.ChatGLM
) -> None:
    words: Any = {"labels": ["正面", "负面"], "output_prefix": "m_"}
    for glm, asked in ((nano, {"column": "review"}), (nano_base, {"prompt": "长话" * 20_000 + "{review}"})):
        given = {"examples": [("长话" * 20_000, "正面")]} if glm is nano else {}
        with pytest.raises(JobError, match=r"no row can fit: .* shorten the prompt, the system message"):
            bulk.classify(EXAMPLES, tmp_path / "out.jsonl", model=glm, **words, **asked, **given)
    assert not list(tmp_path.iterdir())


def test_a_job_of_bad_rows_alone(tmp_path: Path, nano: chatglm3.ChatGLM) -> None:
    path = write(tmp_path / "in.jsonl", [{"review": None}, {"review": None}])
    summary = bulk.run(path, tmp_path / "out.csv", model=nano, column="review")
    assert (summary.rows, summary.errors, summary.prompts) == (2, 2, 0)
    assert (tmp_path / "out.csv").read_text(encoding="utf-8-sig").count("no value") == 2


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"column": "text"}, JobError, "names the column 'text'; the columns are 'id', 'review', 'label'"),
        ({"prompt": "{review"}, JobError, "names no column"),
        ({"column": "review", "output_prefix": ""}, JobError, "another 'label'; choose --output-prefix"),
        ({"column": "review", "labels": ["x", "x"]}, MessageError, "x is given twice"),
        ({"column": "review", "labels": []}, MessageError, "at least two"),
        ({"column": "review", "labels": ["x", " "]}, MessageError, "non-empty"),
    ],
)  # fmt: skip
def test_refusals_before_any_work(
    tmp_path: Path, nano: chatglm3.ChatGLM, words: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        bulk.classify(EXAMPLES, tmp_path / "out.jsonl", model=nano, **{"labels": ["正面", "负面"], **words})
    assert not list(tmp_path.iterdir())


def test_more_refusals_before_any_work(tmp_path: Path, nano: chatglm3.ChatGLM) -> None:
    words: Any = {"model": nano, "column": "review"}
    with pytest.raises(JobError, match="no column for logprobs"):
        bulk.run(EXAMPLES, tmp_path / "out.jsonl", logprobs=1, **words)
    with pytest.raises(chatglm3.SamplingError, match="did you mean temperature"):
        bulk.run(EXAMPLES, tmp_path / "out.jsonl", temprature=1, **words)
    with pytest.raises(chatglm3.SamplingError, match="uniqueItems"):
        bulk.run(EXAMPLES, tmp_path / "out.jsonl", json_schema={"type": "array", "uniqueItems": True}, **words)
    with pytest.raises(DataError, match="a table is"):
        bulk.run(EXAMPLES, tmp_path / "out.txt", **words)
    with pytest.raises(FileNotFoundError):
        bulk.run(tmp_path / "nothing.jsonl", tmp_path / "out.jsonl", **words)
    with pytest.raises(FileNotFoundError):
        bulk.run(EXAMPLES, tmp_path / "nowhere" / "out.jsonl", **words)
    assert not list(tmp_path.iterdir())
    (tmp_path / "out.jsonl").write_text("mine")
    with pytest.raises(JobError, match=r"out\.jsonl exists; give another output"):
        bulk.run(EXAMPLES, tmp_path / "out.jsonl", **words)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
