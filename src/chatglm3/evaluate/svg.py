"""The plots of a report as SVG. Colours come from the page's style sheet, which knows light and dark."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from chatglm3.evaluate.markup import Html, element, join
from chatglm3.evaluate.metrics import Bin, Interval

WIDTH = 400.0
"""Units; the page scales a plot to its column, so that text stays readable on a phone."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A share with its interval; `style` is the class of its colour."""

    name: str
    value: float
    interval: Interval
    style: str


def bars(title: str, items: Sequence[Bar]) -> Html:
    """Horizontal bars from 0 to 100 %, each under its name, with its interval as a line."""
    step, top, right = 40.0, 8.0, WIDTH - 62
    bottom = top + step * len(items)
    ticks = [
        join(_line(right * t, top, right * t, bottom, "grid"), _text(right * t, bottom + 14, f"{t:.0%}", "middle"))
        for t in (0.25, 0.5, 0.75, 1.0)
    ]
    drawn = [_bar(item, top + step * place, right) for place, item in enumerate(items)]
    return _plot(title, WIDTH, bottom + 20, *ticks, *drawn)


def _bar(item: Bar, top: float, right: float) -> Html:
    middle = top + 26
    low, high = right * item.interval.low, right * item.interval.high
    return join(
        _text(0, top + 13, item.name),
        _rect(0, middle - 7, right * item.value, 14, item.style),
        _line(low, middle, high, middle, "whisker"),
        *(_line(end, middle - 5, end, middle + 5, "whisker") for end in (low, high)),
        _text(right + 8, middle + 4, f"{100 * item.value:.1f} %"),
    )


def confusion(title: str, labels: Sequence[str], counts: Sequence[Sequence[int]], style: str) -> Html:
    """A square for each pair of true label (row) and answer (column), as dark as its share of the row."""
    cell, left, top = 52.0, 86.0, 40.0
    columns = [*labels, "no label"]
    width, height = max(300.0, left + cell * len(columns)), top + cell * len(labels) + 4
    heads = [_text(left + cell * (i + 0.5), top - 8, _short(name, 8), "middle") for i, name in enumerate(columns)]
    sides = [_text(left - 8, top + cell * (i + 0.5) + 4, _short(name, 12), "end") for i, name in enumerate(labels)]
    cells = [
        _cell(left + cell * j, top + cell * i, cell, count, sum(row), style)
        for i, row in enumerate(counts)
        for j, count in enumerate(row)
    ]
    corner = _text(0, 12, "row: true label; column: answer")
    return _plot(title, width, height, corner, *heads, *sides, *cells)


def _cell(x: float, y: float, size: float, count: int, total: int, style: str) -> Html:
    share = count / total if total else 0.0
    square = _rect(x + 1, y + 1, size - 2, size - 2, f"{style} cell", opacity=0.06 + 0.5 * share)
    return join(square, _text(x + size / 2, y + size / 2 + 4, f"{count:,}", "middle"))


def reliability_diagram(title: str, bins: Sequence[Bin], style: str) -> Html:
    """How often answers of a probability are right: bars against the diagonal, with the number of answers on them."""
    left, top, size = 44.0, 10.0, 250.0
    bottom = top + size
    drawn = [_column(part, left, bottom, size, style) for part in bins if part.count]
    ticks = [
        join(
            _text(left - 6, bottom - size * t + 4, f"{t:.0%}", "end"),
            _text(left + size * t, bottom + 16, f"{t:.0%}", "middle"),
            _line(left, bottom - size * t, left + size, bottom - size * t, "grid"),
        )
        for t in (0.0, 0.5, 1.0)
    ]
    diagonal = _line(left, bottom, left + size, top, "diagonal")
    below = _text(left + size / 2, bottom + 32, "probability of the label", "middle")
    beside = _text(left + size + 8, top + 8, "share right")
    return _plot(title, left + size + 76, bottom + 40, *ticks, *drawn, diagonal, below, beside)


def _column(part: Bin, left: float, bottom: float, size: float, style: str) -> Html:
    height, width = size * part.accuracy, size * (part.high - part.low)
    x = left + size * part.low
    count = f"{part.count:,}" if part.count < 10_000 else f"{part.count // 1000}k"
    bar = _rect(x + 1, bottom - height, width - 2, height, style)
    return join(bar, _text(x + width / 2, bottom - 4, count, "middle", "tiny"))


def _plot(title: str, width: float, height: float, *children: Html) -> Html:
    size = {"viewBox": f"0 0 {width:g} {height:g}", "role": "img", "aria-label": title}
    return element("svg", size, element("title", None, title), *children)


def _text(x: float, y: float, text: str, anchor: str = "start", style: str = "") -> Html:
    return element("text", {"x": x, "y": y, "text-anchor": anchor, "class": style}, text)


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> Html:
    return element("line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "class": style})


def _rect(x: float, y: float, width: float, height: float, style: str, opacity: float = 1.0) -> Html:
    box = {"x": x, "y": y, "width": max(width, 0.0), "height": max(height, 0.0)}
    return element("rect", {**box, "class": style, "fill-opacity": opacity})


def _short(name: str, columns: int) -> str:
    """The name cut to so many columns, of which a Chinese character takes two."""
    kept, width = "", 0
    for letter in name:
        width += 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if width > columns:
            return f"{kept[:-1]}…"
        kept += letter
    return kept
