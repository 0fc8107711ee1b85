"""Encodings that a Chinese Excel writes are found on the bytes; what is mixed or unreadable is named by its line."""

from __future__ import annotations

import codecs
import csv
import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatglm3.errors import DataError
from chatglm3.tables import open_table, read_rows
from chatglm3.tables.encoding import find_encoding

TEXT = "review,label\r\n很好看，推荐,正面\r\n太吵了,负面\r\n"
ROWS = [{"review": "很好看，推荐", "label": "正面"}, {"review": "太吵了", "label": "负面"}]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gbk", "gb18030", "utf-16"])
def test_what_excel_writes_is_read(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(TEXT.encode(encoding))
    assert list(read_rows(path)) == ROWS
    assert find_encoding(path) == {"gbk": "gb18030"}.get(encoding, encoding)


def test_utf_16_with_the_other_byte_order(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(codecs.BOM_UTF16_BE + TEXT.replace(",", "\t").encode("utf-16-be"))
    assert [list(row.values()) for row in read_rows(path)] == [list(row.values()) for row in ROWS]


def test_the_encoding_is_decided_on_all_lines_and_not_on_the_first(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    ascii_rows = "".join(f"row {i},x\n" for i in range(20_000))
    path.write_bytes(f"review,label\n{ascii_rows}很好,正面\n".encode("gbk"))
    assert list(read_rows(path))[-1] == {"review": "很好", "label": "正面"}


def test_gbk_that_looks_like_utf_8_in_one_line(tmp_path: Path) -> None:
    """The bytes of 联通 in GBK are two Cyrillic or Arabic letters in UTF-8: such a line alone decides nothing."""
    path = tmp_path / "t.csv"
    path.write_bytes("运营商,评价\n联通,很好\n联通,\n移动,一般\n".encode("gbk"))
    assert [row["运营商"] for row in read_rows(path)] == ["联通", "联通", "移动"]


@pytest.mark.parametrize(("first", "second"), [("utf-8", "gbk"), ("gbk", "utf-8")])
def test_a_mixed_file_is_refused_by_line(tmp_path: Path, first: str, second: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("review\n很好看，推荐\n".encode(first) + "plain\n太吵了\n".encode(second))
    with pytest.raises(DataError, match=r"t\.csv, line 4 is .*, but line 2 is") as caught:
        open_table(path)
    assert "\n" not in str(caught.value)


def test_unreadable_bytes_are_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": "\xff\xff"}\n')
    with pytest.raises(DataError, match=r"line 2 is neither UTF-8 nor GB18030; name its encoding"):
        open_table(path)
    path.write_bytes("a\n1\n".encode("utf-16-le"))
    with pytest.raises(DataError, match=r"line 1: a zero byte; .* --encoding utf-16-le"):
        open_table(path)


@pytest.mark.parametrize(("encoding", "line"), [("utf-8", 3), ("big5", 3), ("utf-16-le", 2)])
def test_a_named_encoding_is_held_to(tmp_path: Path, encoding: str, line: int) -> None:
    good = "review\n上好看\n".encode(encoding)
    bad = b"\x00\xd8\x0a\x00" if encoding == "utf-16-le" else b"ab\xff\xffcd\n"
    path = tmp_path / "t.csv"
    path.write_bytes(good)
    assert list(read_rows(path, encoding=encoding)) == [{"review": "上好看"}]
    path.write_bytes(good + bad if encoding != "utf-16-le" else "review\n".encode(encoding) + bad)
    with pytest.raises(DataError, match=f"line {line} is not {encoding.upper()}"):
        open_table(path, encoding=encoding)


def test_an_unknown_encoding(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a\n1\n")
    with pytest.raises(DataError, match="unknown encoding 'gb9999'; use utf-8, gb18030"):
        open_table(path, encoding="gb9999")


def test_a_file_that_is_one_endless_line(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl.gz"
    path.write_bytes(gzip.compress(b"x" * (17 << 20)))
    with pytest.raises(DataError, match="line 1 is longer than 16 MiB"):
        open_table(path)


CELLS = st.text(st.characters(min_codepoint=0x4E00, max_codepoint=0x9FA5), min_size=1, max_size=12)


@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=8), st.sampled_from(["utf-8", "gbk", "utf-16"]))
def test_any_chinese_table_survives(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], encoding: str
) -> None:
    path = tmp_path_factory.mktemp("any") / "t.csv"
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file).writerows([("评论内容", "标签"), *rows])
    assert [tuple(row.values()) for row in read_rows(path)] == rows


def test_real_reviews(tmp_path: Path) -> None:
    source = Path(__file__).parents[2] / "../shared/data/waimai_10k.csv"
    if not source.is_file():
        pytest.skip("the reviews (../shared/data) are absent")
    path = tmp_path / "gbk.csv"
    path.write_bytes(source.read_text(encoding="utf-8").encode("gb18030"))
    rows = list(read_rows(path))
    assert find_encoding(path) == "gb18030" and len(rows) > 10_000
    assert rows == list(read_rows(source))
