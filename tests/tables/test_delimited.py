"""CSV: delimiters, quotes, ragged rows, empty cells, and the way back."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatglm3.errors import DataError
from chatglm3.tables import BadRow, Row, open_table, read_rows, write_rows


def rows_of(path: Path, text: str) -> list[Row | BadRow]:
    path.write_text(text, encoding="utf-8", newline="")
    return list(open_table(path).rows())


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_delimiters_and_line_ends(tmp_path: Path, delimiter: str, end: str) -> None:
    lines = (("id", '"a, ""b""; c"'), ("1", '"x\ny"'), ("2", "z"))
    rows = rows_of(tmp_path / "t.csv", "".join(delimiter.join(line) + end for line in lines))
    assert rows == [{"id": "1", 'a, "b"; c': "x\ny"}, {"id": "2", 'a, "b"; c': "z"}]


def test_one_column_and_the_delimiter_of_a_suffix(tmp_path: Path) -> None:
    assert rows_of(tmp_path / "t.csv", "review\ngood\n") == [{"review": "good"}]
    assert rows_of(tmp_path / "t.tsv", "a\tb, c\n1\t2, 3\n") == [{"a": "1", "b, c": "2, 3"}]


def test_empty_and_nan_cells_are_null_and_stay_empty(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "t.csv", "a,b,c\n1,,NaN\nnan,NA,0\n")
    assert rows == [{"a": "1", "b": None, "c": None}, {"a": None, "b": "NA", "c": "0"}]
    write_rows(tmp_path / "o.csv", [row for row in rows if isinstance(row, dict)], {"a": "text", "b": "text"})
    assert (tmp_path / "o.csv").read_bytes() == b"\xef\xbb\xbfa,b\r\n1,\r\n,NA\r\n"


def test_ragged_rows_are_bad_rows_and_the_others_are_not(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "t.csv", "a,b\n1,2\n3\n\n4,5,6\n7,8,,\n")
    assert rows == [
        {"a": "1", "b": "2"},
        BadRow({"a": "3"}, "line 3 has 1 cells where the first line has 2"),
        BadRow({"a": "4", "b": "5"}, "line 5 has 3 cells where the first line has 2"),
        {"a": "7", "b": "8"},
    ]
    with pytest.raises(DataError, match=r"t\.csv, line 3 has 1 cells"):
        list(read_rows(tmp_path / "t.csv"))


def test_a_wrong_quote_in_one_line_is_a_bad_row(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "t.csv", 'a,b\n1,2\n"x"y,3\nhe said "hi",4\n5,"6')
    assert [row for row in rows if isinstance(row, dict)] == [{"a": "1", "b": "2"}, {"a": 'he said "hi"', "b": "4"}]
    assert [row.error[:7] for row in rows if isinstance(row, BadRow)] == ["line 3:", "line 5:"]


def test_a_quote_that_stays_open_is_an_error_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="begins in line 2 does not end as it should up to line 4"):
        rows_of(tmp_path / "t.csv", 'a,b\n"1,2\n3,4\n5,6\n')


@pytest.mark.parametrize(
    ("header", "words"), [("a,b,a", "the column 'a' twice"), ("a,,b", "no name for column 2"), (",a", "column 1")]
)
def test_columns_need_names(tmp_path: Path, header: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        rows_of(tmp_path / "t.csv", f"{header}\n1,2,3\n")
    assert rows_of(tmp_path / "t.csv", "a,b,,\n1,2,,\n") == [{"a": "1", "b": "2"}]


def test_a_cell_of_a_megabyte(tmp_path: Path) -> None:
    assert rows_of(tmp_path / "t.csv", f"a\n{'x' * 1_000_000}\n") == [{"a": "x" * 1_000_000}]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_a_csv_file_is_written_like_the_one_it_comes_from(tmp_path: Path, encoding: str) -> None:
    source, copy = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_bytes('评论;标签\n"a;b";正面\n'.encode(encoding))
    table = open_table(source)
    write_rows(copy, [row for row in table.rows() if isinstance(row, dict)], {"评论": "text", "标签": "text"}, table)
    assert copy.read_bytes() == source.read_bytes()


def test_other_encodings_are_written_as_what_excel_opens(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_bytes("評論,x\n好,1\n".encode("big5"))
    table = open_table(tmp_path / "in.csv", encoding="big5")
    write_rows(tmp_path / "out.tsv", [{"評論": "好😀", "x": "1"}], {"評論": "text", "x": "text"}, table)
    assert (tmp_path / "out.tsv").read_bytes() == "\ufeff評論\tx\n好😀\t1\n".encode()


def test_values_that_are_no_text(tmp_path: Path) -> None:
    row: Row = {"a": True, "b": 1.5, "c": {"好": [1, None]}, "d": "half \ud83d"}
    write_rows(tmp_path / "o.csv", [row], dict.fromkeys(row, "text"))
    assert list(read_rows(tmp_path / "o.csv")) == [{"a": "true", "b": "1.5", "c": '{"好": [1, null]}', "d": "half ?"}]
