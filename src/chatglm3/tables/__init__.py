"""Tables in files, a row at a time: JSONL, CSV and Parquet, each of the first two also as .gz or .zst.

`open_table` gives a table that can be read any number of times, `read_rows` its rows where a bad one is an error, and
`write_rows` makes a file that appears when it is complete.
"""

from chatglm3.tables.formats import Table, open_table, read_rows, write_rows
from chatglm3.tables.rows import BadRow, Columns, Kind, Row, as_text

__all__ = ["BadRow", "Columns", "Kind", "Row", "Table", "as_text", "open_table", "read_rows", "write_rows"]
