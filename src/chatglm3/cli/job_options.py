"""The words that `run` and `classify` share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from chatglm3.cli.text import require_utf8

if TYPE_CHECKING:
    from chatglm3.messages import History

Input: TypeAlias = Annotated[Path, typer.Argument(help="Rows: .jsonl, .csv, .tsv, .parquet; or a job file, .yaml.")]
Output: TypeAlias = Annotated[Path | None, typer.Argument(help="File to write, in the format that its name says.")]
Prompt: TypeAlias = Annotated[str | None, typer.Option(help="What each row is asked; {column} is the row's value.")]
Column: TypeAlias = Annotated[str | None, typer.Option(help="Short for a prompt that is this column's value alone.")]
System: TypeAlias = Annotated[str | None, typer.Option(help="The system message.")]
HistoryFile: TypeAlias = Annotated[Path | None, typer.Option("--history", help="JSON file of messages to begin with.")]
Truncate: TypeAlias = Annotated[bool, typer.Option("--truncate", help="Cut the values of rows that are too long.")]
Limit: TypeAlias = Annotated[int | None, typer.Option(min=1, help="Only the first rows.")]
Sample: TypeAlias = Annotated[int | None, typer.Option(min=1, help="Only so many rows, drawn with --seed.")]
Encoding: TypeAlias = Annotated[str | None, typer.Option(help="Of CSV and JSONL.", show_default="found out")]
OutputPrefix: TypeAlias = Annotated[str, typer.Option(help="What the names of new columns begin with.")]
DryRun: TypeAlias = Annotated[bool, typer.Option("--dry-run", help="Show three prompts and the time it would take.")]
JsonLines: TypeAlias = Annotated[bool, typer.Option("--json", help="Progress and summary as JSON, an object a line.")]


def require_asked(output: Path | None, prompt: str | None, column: str | None, system: str | None) -> Path:
    """The output; an error where it is missing, or what the rows are asked, or where that is no text."""
    if output is None:
        raise typer.BadParameter("give an OUTPUT, on the command line or in the job file")
    if (prompt is None) == (column is None):
        raise typer.BadParameter("give either --prompt or --column")
    for text, what in ((prompt, "prompt"), (column, "column"), (system, "system message")):
        require_utf8(text or "", what)
    return output


def split_list(values: list[str] | None) -> tuple[str, ...]:
    """An option that was given once holds a list with commas; given more often, each time one item."""
    if not values or len(values) > 1:
        return tuple(values or ())
    return tuple(item.strip() for item in re.split("[,，]", values[0]))


def read_history(path: Path | None) -> History:
    """The messages of a file."""
    if path is None:
        return ()
    from chatglm3.cli.history_file import load_history

    return load_history(path)
