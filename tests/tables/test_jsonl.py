"""JSONL, compression, names of files, and files that appear when they are complete."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from chatglm3.errors import DataError
from chatglm3.tables import BadRow, Row, open_table, read_rows, write_rows

ROWS: list[Row] = [{"a": "很好", "n": 1, "deep": {"x": [1.5, None, True]}}, {"b": "half \ud83d", "n": None}]


@pytest.mark.parametrize("name", ["t.jsonl", "t.ndjson", "t.jsonl.gz", "t.jsonl.zst"])
def test_rows_survive(tmp_path: Path, name: str) -> None:
    if name.endswith(".zst"):
        pytest.importorskip("pyarrow")
    write_rows(tmp_path / name, ROWS, {})
    assert list(read_rows(tmp_path / name)) == ROWS
    first = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    write_rows(tmp_path / name, ROWS, {})
    assert (tmp_path / name).read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_what_is_no_object_is_a_bad_row(tmp_path: Path) -> None:
    deep, long = "[" * 100_000, "9" * 5000
    path = tmp_path / "t.jsonl"
    path.write_text(
        f'{{"a": NaN, "b": -Infinity, "c": 1e400}}\n\n[1]\n{{"a": \n"x\u2028y"\n{deep}\n{{"a": {long}}}\n{{"a": 1}}',
        encoding="utf-8",
    )
    rows = list(open_table(path).rows())
    assert rows[0] == {"a": None, "b": None, "c": None} and rows[-1] == {"a": 1}
    bad = [row.error for row in rows if isinstance(row, BadRow)]
    assert bad[0] == "line 3 is not a JSON object but [1]"
    assert bad[1] == "line 4 is not JSON: Expecting value (column 6)"
    assert bad[2].startswith("line 5 is not a JSON object")
    assert bad[3].startswith("line 6 is not JSON: ")
    assert bad[4] == "line 7 is not JSON: a number has too many digits; write it as text, in quotes"
    with pytest.raises(DataError, match=r"t\.jsonl, line 3 is not a JSON object"):
        list(read_rows(path))


@pytest.mark.parametrize("name", ["t.jsonl", "t.csv", "t.csv.gz"])
@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff"])
def test_an_empty_file_is_one_clear_line(tmp_path: Path, name: str, text: str) -> None:
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(DataError, match=f"{name} has no rows"):
        list(read_rows(tmp_path / name))


def test_a_header_alone_has_no_rows(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n")
    with pytest.raises(DataError, match="has no rows"):
        list(read_rows(tmp_path / "t.csv"))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_that_is_cut_off_or_is_none(tmp_path: Path, suffix: str) -> None:
    if suffix == ".zst":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"t.jsonl{suffix}"
    write_rows(path, [{"a": str(i * 7919)} for i in range(5000)], {})
    data = path.read_bytes()
    for damaged in (data[: len(data) // 2], b"not compressed at all"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="cannot be read"):
            list(read_rows(path))


@pytest.mark.parametrize("name", ["t.json", "t.xlsx", "t", "t.gz"])
def test_a_name_that_says_no_format(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match=r"a table is \.jsonl, \.ndjson, \.csv, \.tsv, \.parquet"):
        open_table(tmp_path / name)


def test_a_missing_file(tmp_path: Path) -> None:
    for name in ("nothing.jsonl", "nothing.docx"):
        with pytest.raises(FileNotFoundError):
            list(read_rows(tmp_path / name))


def test_a_file_that_fails_half_way_does_not_appear(tmp_path: Path) -> None:
    def rows() -> Iterator[Row]:
        yield {"a": 1}
        raise RuntimeError("half way")

    for name in ("t.jsonl", "t.csv.gz"):
        with pytest.raises(RuntimeError, match="half way"):
            write_rows(tmp_path / name, rows(), {"a": "integer"})
    assert not list(tmp_path.iterdir())


def test_reading_is_streamed(tmp_path: Path) -> None:
    """The first row is there before a later line is looked at as JSON."""
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"a": 1}) + "\nnot json\n", encoding="utf-8")
    assert next(read_rows(path)) == {"a": 1}
