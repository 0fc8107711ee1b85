"""The table of `cpu.py`: one row a measure, with what it must reach, and the raw numbers beside it."""

from __future__ import annotations

import json
import operator
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

_REACHED = {"≥": operator.ge, "≤": operator.le}


@dataclass(frozen=True)
class Spread:
    """The values of all rounds; the median counts."""

    values: tuple[float, ...]
    unit: str

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def __str__(self) -> str:
        low, high = min(self.values), max(self.values)
        spread = f" ({low:.4g}-{high:.4g})" if len(self.values) > 1 else ""
        return f"{self.median:.4g}{spread} {self.unit}"


@dataclass(frozen=True)
class Bar:
    """What a number must reach."""

    relation: str
    value: float

    def reached(self, number: float) -> bool:
        return bool(_REACHED[self.relation](number, self.value))

    def __str__(self) -> str:
        return f"{self.relation} {self.value:.2f}"


@dataclass(frozen=True)
class Row:
    """A measure: ours, the other's if there is one, and the number that the bar is about (their ratio by default)."""

    measure: str
    ours: Spread
    other: Spread | None = None
    bar: Bar | None = None
    other_name: str = ""

    @property
    def number(self) -> float:
        return self.ours.median / self.other.median if self.other else self.ours.median

    def cells(self) -> tuple[str, ...]:
        other = f"{self.other_name}: {self.other}" if self.other else "-"
        ratio = f"{self.number:.3f}" if self.other else "-"
        verdict = "" if self.bar is None else "[green]yes[/]" if self.bar.reached(self.number) else "[red]NO[/]"
        return self.measure, str(self.ours), other, ratio, str(self.bar or "-"), verdict


@dataclass
class Report:
    """Rows in order, and everything measured, for `--json`."""

    header: str
    rows: list[Row] = field(default_factory=list)
    raw: dict[str, object] = field(default_factory=dict)

    def add(self, *rows: Row) -> None:
        self.rows += rows

    def print(self) -> None:
        table = Table("measure", "ours", "other", "ratio", "must reach", "reached", title=self.header)
        table.caption = "medians (and range) of the rounds; what must be reached is for 2 threads and AVX2"
        for row in self.rows:
            table.add_row(*row.cells())
        Console(width=150).print(table)

    def write(self, file: Path) -> None:
        rows = [
            {**asdict(row), "number": row.number, "reached": None if row.bar is None else row.bar.reached(row.number)}
            for row in self.rows
        ]
        data = {"header": self.header, "rows": rows, "raw": self.raw}
        file.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def one(value: float, unit: str) -> Spread:
    """A number measured once."""
    return Spread((value,), unit)


def each(values: Sequence[float], unit: str) -> Spread:
    """A number measured in every round."""
    return Spread(tuple(values), unit)
