"""Jobs on the bundled models: what the output holds, for good rows and for bad ones."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import chatglm3
from bulk.reviews import EXAMPLES, SYSTEM, read, write
from chatglm3 import bulk
from chatglm3.errors import DataError, JobError, MessageError

SHORT: Any = {"max_new_tokens": 4}


def test_answers_are_those_of_chat_and_columns_are_kept_in_order(tmp_path: Path, nano: chatglm3.ChatGLM) -> None:
    seen: list[bulk.Progress] = []
    summary = bulk.run(
        EXAMPLES, tmp_path / "out.jsonl", model=nano, column="review", system=SYSTEM, progress=seen.append, **SHORT
    )
    rows, source = read(tmp_path / "out.jsonl"), read(EXAMPLES)
    new = ["answer", "finish_reason", "prompt_tokens", "completion_tokens", "error"]
    assert [list(row) for row in rows] == [[*source[0], *new]] * len(source)
    assert [{key: row[key] for key in source[0]} for row in rows] == source
    history = [{"role": "system", "content": SYSTEM}]
    for row in rows[:3]:
        reply = nano.chat(row["review"], history, temperature=0, **SHORT)
        assert (row["answer"], row["finish_reason"], row["error"]) == (reply.text, reply.finish_reason, None)
        assert row["prompt_tokens"] == reply.usage.prompt_tokens
    assert (summary.rows, summary.prompts, summary.errors, summary.first_errors) == (len(source), len(source), 0, ())
    assert [now.rows for now in seen] == [0, len(source)] and seen[-1].prefix_hits > 0.3
    assert seen[-1].tokens_per_second > 0 and seen[-1].seconds_left == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_base_model_continues_the_prompt(tmp_path: Path, nano_base: chatglm3.ChatGLM) -> None:
    prompt = "评论：{review}\n情感："
    bulk.run(EXAMPLES, tmp_path / "out.jsonl", model=nano_base, prompt=prompt, limit=5, stop=["\n"], **SHORT)
    rows = read(tmp_path / "out.jsonl")
    texts = [prompt.replace("{review}", row["review"]) for row in rows]
    expected = nano_base.complete(texts, temperature=0, stop=["\n"], **SHORT)
    assert [row["answer"] for row in rows] == [completion.text for completion in expected] and len(rows) == 5
    for words in ({"system": "x"}, {"history": [{"role": "user", "content": "x"}]}):
        with pytest.raises(JobError, match="a Base model knows no"):
            bulk.run(EXAMPLES, tmp_path / "new.jsonl", model=nano_base, prompt=prompt, **words)
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_choices_and_a_history(tmp_path: Path, nano: chatglm3.ChatGLM) -> None:
    history = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好。"}]
    words: Any = {"model": nano, "prompt": "{review}正面还是负面？", "history": history, "choices": ["正面", "负面"]}
    bulk.run(EXAMPLES, tmp_path / "out.jsonl", limit=8, **words)
    assert {row["answer"] for row in read(tmp_path / "out.jsonl")} <= {"正面", "负面"}


def test_labels_are_those_of_classify(tmp_path: Path, nano: chatglm3.ChatGLM) -> None:
    labels, examples = ["正面", "负面"], [("很好看", "正面"), ("太吵了", "负面")]
    words: Any = {"labels": labels, "system": SYSTEM, "examples": examples, "calibrate": True}
    bulk.classify(EXAMPLES, tmp_path / "out.jsonl", model=nano, column="review", output_prefix="model_", **words)
    rows = read(tmp_path / "out.jsonl")
    expected = nano.classify([row["review"] for row in rows], **words)
    for row, found in zip(rows, expected, strict=True):
        assert (row["model_label"], row["model_error"]) == (found.label, None)
        assert row["model_probability"] == pytest.approx(found.probabilities[found.label], rel=1e-4)
        assert row["model_p_正面"] + row["model_p_负面"] == pytest.approx(1, abs=1e-5)
        assert row["model_margin"] == pytest.approx(found.margin, abs=1e-4)
    assert list(rows[0])[3:] == [
        f"model_{name}" for name in ("label", "probability", "margin", "p_正面", "p_负面", "error")
    ]


def test_a_base_model_gets_the_answer_mark_behind_a_bare_column(tmp_path: Path, nano_base: chatglm3.ChatGLM) -> None:
    words: Any = {"model": nano_base, "labels": ["正面", "负面"], "output_prefix": "m_", "limit": 4}
    bulk.classify(EXAMPLES, tmp_path / "a.jsonl", column="review", **words)
    bulk.classify(EXAMPLES, tmp_path / "b.jsonl", prompt="{review}\n答案：", **words)
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


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
    assert all(row["answer"] is None and row["finish_reason"] is None for row in rows[1:9])
    assert rows[3]["other"] == 1 and rows[7]["review"] == "半\ud83d"
    assert (summary.rows, summary.errors, len(summary.first_errors)) == (10, 8, 5)
    assert summary.first_errors[0] == (2, rows[1]["error"])


def test_a_job_of_bad_rows_alone(tmp_path: Path, nano: chatglm3.ChatGLM) -> None:
    path = write(tmp_path / "in.jsonl", [{"review": None}, {"review": None}])
    summary = bulk.run(path, tmp_path / "out.csv", model=nano, column="review")
    assert (summary.rows, summary.errors, summary.prompts) == (2, 2, 0)
    assert (tmp_path / "out.csv").read_text(encoding="utf-8-sig").count("no value") == 2


def test_truncate_cuts_the_values_and_keeps_the_prompt(tmp_path: Path, nano: chatglm3.ChatGLM) -> None:
    path = write(tmp_path / "in.jsonl", [{"a": "很好看" * 3000, "b": "短"}, {"a": "好", "b": "短"}])
    words: Any = {"model": nano, "prompt": "{a}，{b}：正面还是负面？", **SHORT}
    bulk.run(path, tmp_path / "long.jsonl", **words)
    bulk.run(path, tmp_path / "cut.jsonl", truncate=True, **words)
    assert "context" in read(tmp_path / "long.jsonl")[0]["error"]
    rows = read(tmp_path / "cut.jsonl")
    assert [row["error"] for row in rows] == [None, None]
    room = nano.engine.max_context - 4
    assert room - 3 <= rows[0]["prompt_tokens"] <= room
    labels: Any = {"model": nano, "prompt": "{a}，{b}", "labels": ["正面", "负面"], "truncate": True}
    bulk.classify(path, tmp_path / "labels.jsonl", **labels)
    assert [row["error"] for row in read(tmp_path / "labels.jsonl")] == [None, None]


def test_equal_rows_are_computed_once(tmp_path: Path, nano: chatglm3.ChatGLM) -> None:
    path = write(tmp_path / "in.jsonl", [{"id": i, "review": ("好", "差", "一般")[i % 3]} for i in range(300)])
    before = nano.engine.counters.computed_tokens
    seen: list[bulk.Progress] = []
    summary = bulk.run(path, tmp_path / "out.jsonl", model=nano, column="review", progress=seen.append, **SHORT)
    assert (summary.rows, summary.prompts, seen[-1].rows) == (300, 3, 300)
    assert nano.engine.counters.computed_tokens - before < 100
    rows = read(tmp_path / "out.jsonl")
    assert [row["id"] for row in rows] == list(range(300))
    assert len({(row["review"], row["answer"]) for row in rows}) == 3


def test_a_sample_keeps_the_order(tmp_path: Path, nano: chatglm3.ChatGLM) -> None:
    words: Any = {"model": nano, "column": "review", "sample": 7, **SHORT}
    bulk.run(EXAMPLES, tmp_path / "out.jsonl", seed=3, **words)
    ids = [row["id"] for row in read(tmp_path / "out.jsonl")]
    assert len(ids) == 7 and ids == sorted(ids)


def test_sampling_is_repeatable_by_its_seed(tmp_path: Path, nano: chatglm3.ChatGLM) -> None:
    words: Any = {"model": nano, "column": "review", "limit": 12, "temperature": 1.0, "top_p": 1.0, "top_k": 0, **SHORT}
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        bulk.run(EXAMPLES, tmp_path / f"{name}.jsonl", seed=seed, **words)
    a, b, c = ((tmp_path / f"{name}.jsonl").read_bytes() for name in "abc")
    assert a == b != c


def test_csv_in_gbk_gives_csv_in_gbk(tmp_path: Path, nano: chatglm3.ChatGLM) -> None:
    path = tmp_path / "in.csv"
    path.write_bytes("编号,评论\r\n1,很好看\r\n2\r\n3,\r\n".encode("gbk"))
    bulk.classify(path, tmp_path / "out.csv", model=nano, column="评论", labels=["正面", "负面"])
    with (tmp_path / "out.csv").open(encoding="gb18030", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["编号", "评论", "label", "probability", "margin", "p_正面", "p_负面", "error"]
    assert rows[0]["label"] in ("正面", "负面") and rows[0]["error"] == ""
    assert "line 3 has 1 cells" in rows[1]["error"] and rows[1]["编号"] == "2"
    assert "no value" in rows[2]["error"]


def test_parquet_and_compressed_files(tmp_path: Path, nano: chatglm3.ChatGLM) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    words: Any = {"model": nano, "column": "review", "limit": 6, **SHORT}
    bulk.run(EXAMPLES, tmp_path / "a.parquet", **words)
    table = parquet.read_table(tmp_path / "a.parquet")
    assert dict(zip(table.schema.names, map(str, table.schema.types), strict=True)) == {
        "id": "int64", "review": "string", "label": "string", "answer": "string", "finish_reason": "string",
        "prompt_tokens": "int64", "completion_tokens": "int64", "error": "string",
    }  # fmt: skip
    bulk.run(tmp_path / "a.parquet", tmp_path / "b.jsonl.gz", output_prefix="again_", **words)
    again = bulk.run(tmp_path / "b.jsonl.gz", tmp_path / "c.parquet", output_prefix="third_", **words)
    assert again.errors == 0
    rows = parquet.read_table(tmp_path / "c.parquet").to_pylist()
    assert all(row["answer"] == row["again_answer"] == row["third_answer"] for row in rows)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ({"column": "text"}, JobError, "names the column 'text'; the columns are id, review, label"),
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
