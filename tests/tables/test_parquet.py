"""Parquet: nested columns, types that stay, and kinds that are found for rows of another format."""

from __future__ import annotations

import datetime as dt
import math
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from chatglm3.errors import DataError
from chatglm3.tables import Columns, Row, open_table, read_rows, write_rows

pa: Any = pytest.importorskip("pyarrow")
parquet: Any = pytest.importorskip("pyarrow.parquet")


def write(path: Path, **columns: Any) -> Path:
    parquet.write_table(pa.table(columns), path)
    return path


def test_rows_nested_columns_and_nan(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.parquet",
        review=["好", None],
        score=[1.5, math.nan],
        tags=pa.array([["a", "b"], []]),
        place=pa.array([{"city": "北京", "x": math.nan}, None]),
    )
    rows = list(read_rows(path))
    assert rows[0] == {"review": "好", "score": 1.5, "tags": ["a", "b"], "place": {"city": "北京", "x": None}}
    assert rows[1] == {"review": None, "score": None, "tags": [], "place": None}
    write_rows(tmp_path / "t.jsonl", rows, {})
    assert list(read_rows(tmp_path / "t.jsonl")) == rows
    write_rows(tmp_path / "t.csv", rows, dict.fromkeys(rows[0], "text"))
    assert next(read_rows(tmp_path / "t.csv"))["place"] == '{"city": "北京", "x": null}'


def test_types_of_the_input_stay(tmp_path: Path) -> None:
    when, price = dt.datetime(2024, 5, 1, 12, 30), Decimal("1.10")
    path = write(
        tmp_path / "t.parquet",
        when=pa.array([when], pa.timestamp("ms")),
        price=pa.array([price]),
        small=pa.array([3], pa.int8()),
        raw=pa.array([b"\x00"]),
    )
    table = open_table(path)
    kinds: Any = dict.fromkeys(("when", "price", "small", "raw", "answer"), "text")
    rows = [row | {"answer": "ok"} for row in read_rows(path)]
    write_rows(tmp_path / "o.parquet", rows, kinds, table)
    out = parquet.read_table(tmp_path / "o.parquet")
    assert out.schema.types == [pa.timestamp("ms"), pa.decimal128(3, 2), pa.int8(), pa.binary(), pa.string()]
    assert out.to_pylist() == rows
    write_rows(tmp_path / "o.jsonl", [{"when": when, "price": price}], {})
    assert list(read_rows(tmp_path / "o.jsonl")) == [{"when": "2024-05-01 12:30:00", "price": "1.10"}]


def test_kinds_are_found_for_rows_without_a_schema(tmp_path: Path) -> None:
    rows: list[Row] = [
        {"i": 1, "f": 1, "b": True, "t": "x", "m": 1, "n": None, "big": 2**70},
        {"i": None, "f": 0.5, "b": False, "t": "half \ud83d", "m": "one", "n": None, "d": {"好": 1}},
    ]
    columns = Columns()
    for row in rows:
        columns.see(row)
    write_rows(tmp_path / "t.parquet", rows, columns.kinds)
    out = parquet.read_table(tmp_path / "t.parquet")
    assert [str(kind) for kind in out.schema.types] == ["int64", "double", "bool", *["string"] * 5]
    assert out.to_pylist()[1] == rows[1] | {"big": None, "d": '{"好": 1}', "t": "half ?"}
    assert out.to_pylist()[0]["big"] == str(2**70)


def test_several_batches(tmp_path: Path) -> None:
    write_rows(tmp_path / "t.parquet", ({"i": i} for i in range(10_000)), {"i": "integer"})
    assert [row["i"] for row in read_rows(tmp_path / "t.parquet")] == list(range(10_000))


@pytest.mark.parametrize("data", [b"", b"PAR1 but no more", b"a,b\n1,2\n"])
def test_what_is_no_parquet(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "t.parquet").write_bytes(data)
    with pytest.raises(DataError, match=r"t\.parquet cannot be read as Parquet"):
        list(read_rows(tmp_path / "t.parquet"))


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(read_rows(tmp_path / "nothing.parquet"))
    (tmp_path / "t.parquet.gz").write_bytes(b"")
    with pytest.raises(DataError, match=r"Parquet is compressed inside"):
        list(read_rows(tmp_path / "t.parquet.gz"))
    with pytest.raises(DataError, match="has no rows"):
        list(read_rows(write(tmp_path / "none.parquet", a=pa.array([], pa.string()))))
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="the column 'a' twice"):
        open_table(tmp_path / "twice.parquet")


def test_a_file_that_was_cut_off_inside(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", a=[str(i * 7919) for i in range(5000)])
    data = bytearray(path.read_bytes())
    data[100:400] = b"\xff" * 300
    path.write_bytes(data)
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        list(read_rows(path))


def test_without_pyarrow_the_command_to_install_it_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(b"")
    script = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from pathlib import Path\n"
        "from chatglm3.errors import DataError\n"
        "from chatglm3.tables import open_table\n"
        "for name in sys.argv[1:]:\n"
        "    try:\n        open_table(Path(name))\n"
        "    except DataError as error:\n        print(error)\n"
    )
    (tmp_path / "t.csv.zst").write_bytes(b"")
    names = [str(tmp_path / "t.parquet"), str(tmp_path / "t.csv.zst")]
    done = subprocess.run([sys.executable, "-c", script, *names], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ['.parquet and .zst files need pyarrow: pip install "chatglm3[tables]"'] * 2
