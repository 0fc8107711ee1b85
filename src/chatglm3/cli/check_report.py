"""What `chatglm3 train check` prints: a record for scripts, lines for people, and rows spelled out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.text import Text

    from chatglm3.tokenizer import Tokenizer
    from chatglm3.train.check import Span
    from chatglm3.train.data import TrainingRow
    from chatglm3.train.dataset import Dataset

_NUMBERS_SHOWN, _GROUPS_SHOWN, _LETTERS_SHOWN = 10, 3, 400
_BAR = 40


def record(data: Path, model: str, train: Dataset, validation: Dataset | None) -> dict[str, Any]:
    """What `--json` prints."""
    from chatglm3.train.check import overlap

    return {
        "data": str(data),
        "tokens_of": model,
        **_described(train),
        "validation": None if validation is None else _described(validation),
        "validation_rows_in_train": None if validation is None else list(overlap(train, validation)),
    }


def _described(dataset: Dataset) -> dict[str, Any]:
    from chatglm3.train.check import contradictions, duplicates, histogram, measure

    return {
        "kind": dataset.kind,
        "rows": len(dataset.rows),
        **asdict(measure(dataset)),
        "histogram": histogram([len(row.input_ids) for row in dataset.rows]),
        "shortened": list(dataset.shortened),
        "split": list(dataset.split),
        "dropped": {reason: list(numbers) for reason, numbers in dataset.dropped_rows.items()},
        "remarks": {remark: list(numbers) for remark, numbers in dataset.remarks.items()},
        "duplicates": [list(group) for group in duplicates(dataset)],
        "contradictions": [list(group) for group in contradictions(dataset)],
    }


def lines(path: Path, model: str, dataset: Dataset, purpose: str) -> Iterator[str]:
    """A file's lengths, and a line for each thing that was found in it; `purpose` is what its rows are there to do."""
    found = _described(dataset)
    what = "conversation{}" if dataset.kind == "chat" else "row{} of plain text"
    yield f"{path.name}: {found['rows']:,} {what.format('s' * (found['rows'] != 1))} to {purpose}"
    share = found["targets"] / found["tokens"]
    yield _entry("tokens", f"{found['tokens']:,} of {model}, {found['targets']:,} of them ({share:.0%}) are learned")
    yield _entry(
        "lengths",
        f"median {found['median']:,}, 95 % of rows up to {found['most_up_to']:,}, longest {found['longest']:,}",
    )
    yield from _bars(found["histogram"])
    if dataset.shortened:
        yield _entry("shortened", f"{_rows(dataset.shortened)}: the beginning is cut off, and a larger length keeps it")
    if dataset.split:
        yield _entry("split", f"{_rows(dataset.split)}: too long for one piece, and all of it is learned in several")
    yield from (_entry("dropped", f"{_rows(rows)}: {reason}") for reason, rows in dataset.dropped_rows.items())
    yield from (_entry("remark", f"{_rows(rows)}: {remark}") for remark, rows in dataset.remarks.items())
    yield from _groups("repeated", found["duplicates"], "say the same")
    yield from _groups("conflict", found["contradictions"], "have one question and several answers")


def overlap_line(data: Path, train: Dataset, validation: Dataset) -> str:
    """Which validation rows are no measure of what was learned."""
    from chatglm3.train.check import overlap

    shared = overlap(train, validation)
    text = f"{_rows(shared)}: the question is also in {data.name}" if shared else f"no question is also in {data.name}"
    return _entry("overlap", text)


def _entry(name: str, text: str) -> str:
    return f"{name:<12}{text}"


def _bars(bars: Sequence[tuple[int, int]]) -> Iterator[str]:
    most = max(count for _, count in bars)
    for start, count in bars:
        bar = "█" * -(-count * _BAR // most)
        yield f"{start:>10,}  {bar:<{_BAR}} {count:,}"


def _groups(name: str, groups: Sequence[Sequence[int]], what: str) -> Iterator[str]:
    if groups:
        shown = "; ".join(_numbers(group) for group in groups[:_GROUPS_SHOWN])
        more = "; …" if len(groups) > _GROUPS_SHOWN else ""
        yield _entry(name, f"{sum(map(len, groups)):,} rows {what}: {shown}{more}")


def _rows(numbers: Sequence[int]) -> str:
    return f"{len(numbers):,} row{'s' * (len(numbers) != 1)} ({_numbers(numbers)})"


def _numbers(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:_NUMBERS_SHOWN])) + (", …" if len(numbers) > _NUMBERS_SHOWN else "")


def print_row(tokenizer: Tokenizer, number: int, row: TrainingRow) -> None:
    """A row spelled out: what is learned is green, or stands between « and » where there are no colours."""
    from rich.console import Console

    from chatglm3.train.check import spell

    console = Console(highlight=False)
    typer.echo(f"\nrow {number}, {len(row.input_ids):,} tokens; learned is what is green, or between « and »")
    for line in spell(tokenizer, row):
        console.print(_line(line, in_colour=console.color_system is not None), soft_wrap=True)


def _line(spans: Sequence[Span], *, in_colour: bool) -> Text:
    from rich.text import Text

    line = Text()
    for span in spans:
        shown = _clipped(span.text)
        if in_colour:
            line.append(shown, "bold green" if span.learned else "dim")
        else:
            line.append(f"«{shown}»" if span.learned else shown)
    return line


def _clipped(text: str) -> str:
    """A long text without its middle."""
    half = _LETTERS_SHOWN // 2
    hidden = len(text) - 2 * half
    return text if hidden <= 0 else f"{text[:half]} … {hidden:,} characters … {text[-half:]}"
