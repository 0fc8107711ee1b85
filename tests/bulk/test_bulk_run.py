"""Jobs on the bundled models: what the output holds."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

import chatglm3
from bulk.reviews import EXAMPLES, SYSTEM, read, reviews, write
from chatglm3 import bulk
from chatglm3.errors import JobError

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


def test_equal_rows_draw_answers_of_their_own(tmp_path: Path, nano: chatglm3.ChatGLM) -> None:
    path = write(tmp_path / "in.jsonl", [{"review": "这家店怎么样？"}] * 24)
    words: Any = {"model": nano, "column": "review", "temperature": 2.0, "top_p": 1.0, "top_k": 0, **SHORT}
    bulk.run(path, tmp_path / "out.jsonl", **words)
    answers = [row["answer"] for row in read(tmp_path / "out.jsonl")]
    assert len(set(answers)) > 12


def test_what_a_row_draws_depends_on_no_other_row(tmp_path: Path, nano: chatglm3.ChatGLM) -> None:
    path = write(tmp_path / "in.jsonl", list(reviews(70)))  # two windows
    words: Any = {"model": nano, "column": "review", "temperature": 2.0, "top_p": 1.0, "top_k": 0, "seed": 5, **SHORT}
    bulk.run(path, tmp_path / "all.jsonl", **words)
    bulk.run(path, tmp_path / "some.jsonl", sample=20, **words)
    whole = {row["id"]: row["answer"] for row in read(tmp_path / "all.jsonl")}
    some = read(tmp_path / "some.jsonl")
    assert len(some) == 20 and any(row["id"] >= 64 for row in some)
    assert [row["answer"] for row in some] == [whole[row["id"]] for row in some]


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
