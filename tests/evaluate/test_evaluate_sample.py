"""Labelled rows: splitting, drawing, repeats, and one clear line for rows that cannot be used."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from chatglm3.errors import DataError
from chatglm3.evaluate import LabelledText, Sample, read_sample
from chatglm3.evaluate.data import draw_examples

LABELS = ("正面", "负面")
ROOT = Path(__file__).parents[2]


def write(path: Path, rows: list[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def rows(count: int, label: str = "正面") -> list[Mapping[str, object]]:
    return [{"review": f"{label}第{i}条", "label": label} for i in range(count)]


def test_every_row_is_measured_or_drawn_from(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", rows(30) + rows(10, "负面"))
    sample = read_sample(path, LABELS)
    assert Counter(row.label for row in sample.train) == {"正面": 6, "负面": 2}
    assert sorted(row.row for row in (*sample.test, *sample.train)) == list(range(1, 41))
    assert [row.row for row in sample.test] == sorted(row.row for row in sample.test)
    assert sample == read_sample(path, LABELS)
    assert len(read_sample(path, LABELS, train_fraction=0).test) == 40


def test_a_sample_is_drawn_from_the_whole_file(tmp_path: Path) -> None:
    path = write(tmp_path / "sorted.jsonl", rows(100) + rows(100, "负面"))
    sample = read_sample(path, LABELS, sample=40, train_fraction=0)
    assert len(sample.test) == 40
    assert {row.label for row in sample.test} == set(LABELS)
    first = read_sample(path, LABELS, limit=10, train_fraction=0)
    assert [row.row for row in first.test] == list(range(1, 11))


def test_texts_that_are_measured_are_not_drawn_from(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", rows(3))
    train = write(
        tmp_path / "train.jsonl",
        [
            {"review": " 正面第０条", "label": "正面"},
            {"review": "正 面第1条", "label": "负面"},
            *rows(2, "负面"),
            *rows(1, "负面"),
        ],
    )
    sample = read_sample(path, LABELS, train=train)
    assert sample.repeats == 2
    assert {row.text for row in sample.train} == {"负面第0条", "负面第1条"}


def test_too_few_rows_to_draw_from_say_why_and_what_to_do(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", rows(5))
    with pytest.raises(DataError) as caught:
        draw_examples(read_sample(path, LABELS), LABELS, 4, 0)
    message = str(caught.value)
    assert message.startswith("too few rows for 4 examples") and "(here: 1)" in message and "\n" not in message
    assert all(option in message for option in ("--examples 1)", "--train-fraction", "--train)"))
    with pytest.raises(DataError, match=r"here: 0, and 5 more that repeat a measured text"):
        draw_examples(read_sample(path, LABELS, train=path), LABELS, 4, 0)


def test_a_row_without_text_is_measured_but_never_an_example(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", [*rows(2), {"review": " ", "label": "正面"}])
    train = write(tmp_path / "train.jsonl", [{"review": "", "label": "负面"}, *rows(1, "负面")])
    sample = read_sample(path, LABELS, train=train)
    assert [row.text for row in sample.test] == ["正面第0条", "正面第1条", ""]
    assert [row.text for row in sample.train] == ["负面第0条"] and sample.repeats == 0


def test_values_in_the_file_may_have_other_names(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("label,text\n1,很好吃\n0,太慢了\n", encoding="gb18030")
    found = read_sample(path, {"正面": "1", "负面": "0"}, train_fraction=0, text_column="text", encoding="gb18030")
    assert found.test == (LabelledText("很好吃", "正面", 1), LabelledText("太慢了", "负面", 2))


def test_examples_are_balanced_repeatable_and_in_no_order() -> None:
    train = [LabelledText(f"t{i}", LABELS[i % 10 == 0], i) for i in range(200)]
    sample = Sample((), tuple(train))
    drawn = [draw_examples(sample, LABELS, 8, seed) for seed in range(20)]
    assert drawn[3] == draw_examples(sample, LABELS, 8, 3)
    assert len(set(drawn)) == 20
    assert all(Counter(label for _, label in examples) == {"正面": 4, "负面": 4} for examples in drawn)
    assert len({tuple(label for _, label in examples) for examples in drawn}) > 5
    assert {examples[0][1] for examples in (draw_examples(sample, LABELS, 1, s) for s in range(20))} == set(LABELS)


def test_a_label_with_few_rows_is_filled_up_from_the_others() -> None:
    train = (LabelledText("负", "负面"), *(LabelledText(f"正{i}", "正面") for i in range(9)))
    assert Counter(label for _, label in draw_examples(Sample((), train), LABELS, 6, 0)) == {"正面": 5, "负面": 1}


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ([{"review": "好", "label": ""}], ("row 2", "no label", "1 of 2 rows")),
        ([{"review": "好"}, {"review": "坏", "label": None}], ("row 2", "no label", "2 of 3 rows")),
        ([{"review": "\ud83d", "label": "正面"}], ("row 2", "surrogate")),
        (
            [{"review": "好", "label": "中性"}, {"review": "好", "label": 1}],
            ("row 2", "'中性' (1)", "'1' (1)", "正面, 负面"),
        ),
    ],
)
def test_rows_that_cannot_be_used_are_one_line(
    tmp_path: Path, bad: list[Mapping[str, object]], words: tuple[str]
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows(1), *bad]), encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_sample(path, LABELS)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in (str(path), *words)), message


def test_files_that_cannot_be_measured_are_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "data.jsonl", rows(5))
    with pytest.raises(DataError, match="no column 'text'; it has review, label"):
        read_sample(path, LABELS, text_column="text")
    with pytest.raises(DataError, match="no rows"):
        read_sample(write(tmp_path / "empty.jsonl", []), LABELS)
    with pytest.raises(DataError, match="5 rows leave none to measure"):
        read_sample(path, LABELS, train_fraction=0.99)


def test_a_real_table_is_read() -> None:
    path = ROOT.parent / "shared" / "data" / "waimai_10k.csv"
    if not path.is_file():
        pytest.skip("the real table (../shared/data) is absent")
    sample = read_sample(path, {"正面": "1", "负面": "0"}, sample=500)
    assert len(sample.test) == 500 and len(sample.train) > 1000
    assert not {row.text for row in sample.test} & {row.text for row in sample.train}


def test_a_sample_can_be_made_without_a_file() -> None:
    one, two = LabelledText("a", "正面"), LabelledText("b", "负面")
    assert Sample.of([one], [one, two]) == Sample((one,), (two,), repeats=1)
