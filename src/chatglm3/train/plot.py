"""The losses of a run as one SVG file, which needs no library and no style sheet to be seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

_WIDTH, _HEIGHT = 640.0, 360.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 56.0, 16.0, 28.0, 40.0
_TRAINING, _VALIDATION, _INK, _GRID = "#1f77b4", "#d62728", "#555", "#ccc"

Point = tuple[float, float]
Points = Sequence[Point]
"""Steps and losses, in order."""


def loss_plot(training: Points, validation: Points) -> str:
    """An SVG with the training loss as a line and the validation loss as a line with dots."""
    points = [*training, *validation]
    if not points:
        points = [(0, 0.0)]
    last = max(1, max(step for step, _ in points))
    low, high = _bounds([loss for _, loss in points])

    def place(point: Point) -> Point:
        x = _LEFT + (_WIDTH - _LEFT - _RIGHT) * point[0] / last
        y = _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - point[1]) / (high - low)
        return x, y

    parts = [_grid(place, last, low, high)]
    parts.append(_line([place(point) for point in training], _TRAINING))
    parts.append(_line([place(point) for point in validation], _VALIDATION))
    parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{_VALIDATION}"/>' for x, y in map(place, validation)]
    parts.append(_text(_LEFT, 16, "training loss", _TRAINING))
    if validation:
        parts.append(_text(_LEFT + 110, 16, "validation loss", _VALIDATION))
    parts.append(_text((_WIDTH + _LEFT) / 2, _HEIGHT - 6, "step", _INK, "middle"))
    size = f'viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" width="{_WIDTH:g}" height="{_HEIGHT:g}"'
    style = 'font-family="sans-serif" font-size="12" role="img" aria-label="loss by step"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>{"".join(parts)}</svg>\n'


def _bounds(losses: Sequence[float]) -> tuple[float, float]:
    low, high = min(losses), max(losses)
    margin = (high - low) * 0.05 or max(abs(high) * 0.05, 0.01)
    return low - margin, high + margin


def _ticks(low: float, high: float, wanted: int) -> list[float]:
    """Round numbers between two others, about as many as wanted."""
    rough = (high - low) / wanted
    scale = 10 ** math.floor(math.log10(rough))
    step = min((factor * scale for factor in (1, 2, 5, 10)), key=lambda size: abs(size - rough))
    return [tick * step for tick in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _grid(place: Callable[[Point], Point], last: float, low: float, high: float) -> str:
    parts = []
    for tick in _ticks(low, high, 5):
        _, y = place((0, tick))
        parts.append(f'<path d="M{_LEFT:g} {y:.1f}H{_WIDTH - _RIGHT:g}" stroke="{_GRID}"/>')
        parts.append(_text(_LEFT - 6, y + 4, f"{tick:.4g}", _INK, "end"))
    for tick in filter(float.is_integer, map(float, _ticks(0, last, 6))):
        x, _ = place((tick, low))
        parts.append(_text(x, _HEIGHT - _BOTTOM + 16, f"{tick:g}", _INK, "middle"))
    return "".join(parts)


def _line(points: Points, colour: str) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def _text(x: float, y: float, text: str, colour: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}">{text}</text>'
