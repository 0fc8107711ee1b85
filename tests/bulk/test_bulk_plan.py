"""The first pass: numbers of prompts, samples, and faults of the file before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bulk.reviews import read, reviews, write
from chatglm3.bulk import RunJob
from chatglm3.bulk.plan import Plan
from chatglm3.bulk.runner import read_plan
from chatglm3.engine.params import SamplingParams
from chatglm3.errors import DataError, JobError


def plan(path: Path, **words: Any) -> Plan:
    return read_plan(RunJob(input=path, output=path.with_name("out.jsonl"), **{"column": "a", **words}))


def test_equal_prompts_get_one_number_in_order_of_appearance(tmp_path: Path) -> None:
    values = ["b", "a", "b", None, "c", "a", "b"]
    path = write(tmp_path / "in.jsonl", [{"a": value, "other": i} for i, value in enumerate(values)])
    found = plan(path)
    assert found.numbers.tolist() == [0, 1, 0, -1, 2, 1, 0]
    assert found.repeats.tolist() == [3, 2, 1]
    assert (found.rows, found.prompts, found.bad_rows) == (7, 3, 1)
    assert list(found.windows(2)) == [[(1, ("b",)), (2, ("a",))], [(5, ("c",))]]


def test_where_answers_are_drawn_each_row_has_a_prompt_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [{"a": value} for value in ("b", "a", "b", None, "b")])
    found = plan(path, sampling=SamplingParams(temperature=0.5))
    assert (found.numbers.tolist(), found.repeats.tolist()) == ([0, 1, 2, -1, 3], [1, 1, 1, 1])
    assert [asked.row for window in found.windows(3) for asked in window] == [1, 2, 3, 5]
    assert plan(path, sampling=SamplingParams(temperature=0.5, num_beams=2)).prompts == 2


def test_values_that_join_to_the_same_text_are_different(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [{"a": "x", "b": "yz"}, {"a": "xy", "b": "z"}, {"a": "x", "b": "yz"}])
    assert plan(path, column=None, prompt="{a}{b}").numbers.tolist() == [0, 1, 0]


def test_a_row_keeps_its_number_in_the_input_whichever_rows_are_wanted(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [{"a": str(i)} for i in range(1, 101)])
    asked = [a for window in plan(path, sample=10).windows(64) for a in window]
    assert len(asked) == 10 and all((str(a.row),) == a.values for a in asked)


def test_limit_and_sample(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [{"a": str(i)} for i in range(100)])
    assert plan(path, limit=3).numbers.tolist() == [0, 1, 2]
    assert plan(path, limit=300).rows == 100
    rows = [[row["a"] for _, row in plan(path, sample=10, seed=seed).numbered_rows()] for seed in (0, 0, 1)]
    assert len(rows[0]) == 10 and rows[0] == rows[1] != rows[2]
    assert rows[0] == sorted(rows[0], key=int)
    assert plan(path, sample=10).prompts == 10
    assert plan(path, sample=1000).rows == 100


def test_a_column_may_come_with_a_later_row(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", [{"a": "x"}, {"a": "y", "b": "z"}])
    assert plan(path, column="b").bad_rows == 1


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ({"column": "c"}, "names the column 'c'; the columns are 'a', 'b'$"),
        ({"column": None}, "either prompt or column"),
        ({"prompt": "{a}"}, "either prompt or column"),
        ({"limit": 0}, "limit must be a number of rows, at least 1, not 0"),
        ({"sample": -1}, "sample must be"),
        ({"truncate": True}, "say how long one is, with max_new_tokens"),
    ],
)
def test_what_a_job_cannot_be(tmp_path: Path, words: dict[str, Any], error: str) -> None:
    path = write(tmp_path / "in.jsonl", [{"a": "x"}, {"a": "y", "b": "z"}])
    with pytest.raises(JobError, match=error):
        plan(path, **words)


def test_a_file_without_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"in\.jsonl has no rows"):
        plan(write(tmp_path / "in.jsonl", []))


def test_the_reviews_of_these_tests_are_different(tmp_path: Path) -> None:
    path = write(tmp_path / "in.jsonl", reviews(4000))
    assert len({row["review"] for row in read(path)}) == 4000
