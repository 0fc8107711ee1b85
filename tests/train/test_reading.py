"""The rows of a data file in every format, and one clear line for a file that cannot be read."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from chatglm3.errors import DataError
from chatglm3.tables import write_rows
from chatglm3.train.reading import read_data

PAIRS = [{"prompt": "评论：好吃\n答案：", "response": "正面"}, {"prompt": "评论：太咸\n答案：", "response": "负面"}]


def as_json_array(path: Path) -> None:
    path.write_text(json.dumps(PAIRS, ensure_ascii=False, indent=1), encoding="utf-8-sig")


def as_utf16_array(path: Path) -> None:
    path.write_text(json.dumps(PAIRS, ensure_ascii=False), encoding="utf-16")


def as_gbk_array(path: Path) -> None:
    path.write_text(json.dumps(PAIRS, ensure_ascii=False, indent=1), encoding="gbk")


def as_gzip_array(path: Path) -> None:
    path.write_bytes(gzip.compress(json.dumps(PAIRS).encode()))


def as_lines(path: Path) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in PAIRS), encoding="utf-8")


def as_csv(path: Path, encoding: str = "utf-8-sig") -> None:
    with path.open("w", encoding=encoding, newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["prompt", "response"])
        writer.writerows(row.values() for row in PAIRS)


def as_gbk_csv(path: Path) -> None:
    as_csv(path, "gbk")


def as_parquet(path: Path) -> None:
    pytest.importorskip("pyarrow")
    write_rows(path, [dict(row) for row in PAIRS], {"prompt": "text", "response": "text"})


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("t.json", as_json_array),
        ("t.json", as_utf16_array),
        ("t.json", as_gbk_array),
        ("t.json.gz", as_gzip_array),
        ("t.json", as_lines),
        ("t.jsonl", as_lines),
        ("t.csv", as_csv),
        ("t.csv", as_gbk_csv),
        ("t.parquet", as_parquet),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    make(tmp_path / name)
    assert list(read_data(tmp_path / name)) == PAIRS


@pytest.mark.parametrize("make", [as_gbk_array, as_utf16_array])
def test_the_encoding_that_is_given(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "t.json")
    encoding = "gbk" if make is as_gbk_array else "utf-16"
    assert list(read_data(tmp_path / "t.json", encoding=encoding)) == PAIRS
    with pytest.raises(DataError, match=r"t\.json, line \d is not UTF-8: "):
        list(read_data(tmp_path / "t.json", encoding="utf-8"))


def test_an_array_may_be_one_line_of_any_length(tmp_path: Path) -> None:
    rows = [{"text": "a", "note": "b" * (17 << 20)}]
    (tmp_path / "t.json").write_text(json.dumps(rows), encoding="utf-8")
    assert list(read_data(tmp_path / "t.json")) == rows


BAD_FILES: list[tuple[str, bytes, str]] = [
    ("t.jsonl", b"", r"t\.jsonl has no rows"),
    ("t.json", b" \n", r"t\.json has no rows"),
    ("t.json", b"[]", r"t\.json has no rows"),
    ("t.csv", b"prompt,response\n", r"t\.csv has no rows"),
    ("t.json", b'{"text": "a"}\n{"text": \n', r"t\.json, line 2 is not JSON: "),
    ("t.json", b'[\n{"text": "a"},\n{"text": }\n]', r"t\.json is not JSON: Expecting value \(line 3, column 10\)"),
    ("t.json", b'[{"text": "a"},', r"t\.json is not JSON: Expecting value \(column 16\)"),
    ("t.json", b'[{"text": "a"}, 3]', r"t\.json, row 2 is not a JSON object but 3"),
    ("t.json", b"[" * 100_000, r"t\.json is not JSON: "),
    ("t.json", b'[\n{"text": "\xff\xff"}]', r"t\.json, line 2 is neither UTF-8 nor GB18030"),
    ("t.json", b'[{"text": %s}]' % (b"9" * 5000), r"t\.json is not JSON: a number has too many digits"),
    ("t.jsonl", b'{"text": "a"}\n{"text": \n', r"line 2 is not JSON: Expecting value \(column 9\)$"),
    ("t.txt", b"a", r"t\.txt: data are \.json, \.jsonl, \.ndjson, \.csv, \.tsv, \.parquet "),
]


@pytest.mark.parametrize(("name", "content", "problem"), BAD_FILES, ids=lambda value: str(value)[:30])
def test_a_file_that_cannot_be_used_is_one_clear_line(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=problem) as caught:
        list(read_data(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for name in ("t.json", "t.jsonl", "t.txt"):
        with pytest.raises(FileNotFoundError):
            list(read_data(tmp_path / name))
