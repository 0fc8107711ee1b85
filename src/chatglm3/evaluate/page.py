"""A report as one HTML page that needs nothing else: plots inline, light and dark, readable on a phone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from chatglm3.evaluate.markup import Html, element, join
from chatglm3.evaluate.measuring import ModelResult
from chatglm3.evaluate.report import Report
from chatglm3.evaluate.run import way_name
from chatglm3.evaluate.summary import Condition
from chatglm3.evaluate.svg import Bar, bars, confusion, reliability_diagram
from chatglm3.evaluate.text import (
    COLUMNS,
    EXPLANATION,
    difference_columns,
    differences,
    facts,
    findings,
    format_spread,
    remarks,
    table,
    title,
)

Draw: TypeAlias = Callable[[ModelResult, Condition], Html | None]
POLICY = "default-src 'none'; style-src 'unsafe-inline'"
STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5d646d; --line: #d5d9de; --back: #fff; --raised: #f4f6f8;
  --chat: #2f6fdb; --base: #c2701c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --soft: #a2a9b3; --line: #3a4049; --back: #15181c;
  --raised: #1f2329; --chat: #6fa0f5; --base: #e39a4f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; font: 1rem/1.55 system-ui, "Noto Sans CJK SC", sans-serif;
  color: var(--ink); background: var(--back); }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { margin-top: 2.5rem; font-size: 1.25rem; }
.soft { color: var(--soft); font-size: .9rem; }
.findings { padding: .75rem 1rem .75rem 2rem; background: var(--raised); border-radius: .5rem; }
.findings li + li { margin-top: .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  white-space: nowrap; }
th { color: var(--soft); font-weight: 600; } .facts td { white-space: normal; overflow-wrap: anywhere; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; } figcaption { margin-bottom: .4rem; font-size: .9rem; font-weight: 600; }
svg { display: block; width: 100%; max-width: 34rem; height: auto; }
svg text { fill: currentColor; font-size: 12px; } svg .tiny { font-size: 9px; }
.Chat { fill: var(--chat); } .Base { fill: var(--base); }
.grid { stroke: var(--line); } .whisker { stroke: currentColor; stroke-width: 1.5; }
.diagonal { stroke: currentColor; stroke-dasharray: 4 4; }
pre { padding: .75rem 1rem; background: var(--raised); border-radius: .5rem; white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: .85rem; }
summary { cursor: pointer; margin-top: 1rem; font-weight: 600; }
"""

PROMPTS = (
    "One finished prompt of each form, up to where a label is scored; line breaks are written \\n. A free answer "
    "of Chat begins right behind <|assistant|>."
)


def html_report(report: Report) -> str:
    """The whole page; it may load nothing, so it shows the same from any disk."""
    head = element(
        "head",
        None,
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        element("title", None, title(report)),
        element("style", None, Html(STYLE)),
    )
    body = element("body", None, *_sections(report))
    return f"<!DOCTYPE html>\n{element('html', {'lang': 'en'}, head, body)}\n"


def _sections(report: Report) -> Iterator[Html]:
    labels, lines = report.question.labels, [*findings(report), *remarks(report)]
    yield element("h1", None, title(report))
    if lines:
        yield element("ul", {"class": "findings"}, *(element("li", None, line) for line in lines))
    if report.differences:
        yield _section("Difference", _grid(difference_columns(report), differences(report)))
    yield _section("Accuracy", _figure("Share of right answers, with 95 % intervals", _accuracy(report.models)))
    yield _section("All measures", _grid(COLUMNS, table(report)), element("p", {"class": "soft"}, EXPLANATION))
    yield _section("Answers", _plots(report.models, lambda model, one: _answers(labels, model, one)))
    yield _section("Each label", *(_labels(model, one) for model in report.models for one in model.conditions))
    yield _section("Calibration", _plots(report.models, _calibration))
    prompts = dict.fromkeys(prompt for model in report.models for prompt in model.prompts)
    shown = [join(element("h3", None, p.title), element("pre", None, p.text)) for p in prompts]
    yield _section("Prompts", element("p", {"class": "soft"}, PROMPTS), *shown)
    yield _section("What was measured", _grid(("what", "value"), facts(report), "facts"))


def _accuracy(models: Sequence[ModelResult]) -> Html:
    return bars(
        "Accuracy of each model and way of asking",
        [
            Bar(f"{model.title}: {way_name(one.shots, one.method)}", one.accuracy.mean, one.interval, model.kind)
            for model in models
            for one in model.conditions
        ],
    )


def _plots(models: Sequence[ModelResult], draw: Draw) -> Html:
    drawn = (draw(model, one) for model in models for one in model.conditions)
    return element("div", {"class": "plots"}, *(plot for plot in drawn if plot is not None))


def _answers(labels: Sequence[str], model: ModelResult, one: Condition) -> Html:
    name = (
        f"{model.title}: {way_name(one.shots, one.method)}{f' ({len(one.seeds)} seeds)' if len(one.seeds) > 1 else ''}"
    )
    return _figure(name, confusion(f"Confusion matrix, {name}", labels, one.confusion, model.kind))


def _calibration(model: ModelResult, one: Condition) -> Html | None:
    if one.calibration is None:
        return None
    name = f"{model.title}: {way_name(one.shots, one.method)}, ECE {format_spread(one.calibration, 1)}"
    return _figure(name, reliability_diagram(f"Reliability, {name}", one.reliability, model.kind))


def _labels(model: ModelResult, one: Condition) -> Html:
    rows = [[c.label, f"{c.precision:.3f}", f"{c.recall:.3f}", f"{c.f1:.3f}", f"{c.support:,}"] for c in one.classes]
    name = element("summary", None, f"{model.title}: {way_name(one.shots, one.method)}")
    return element("details", None, name, _grid(("label", "precision", "recall", "F1", "rows"), rows))


def _section(name: str, *children: Html) -> Html:
    return element("section", None, element("h2", None, name), *children)


def _figure(name: str, plot: Html) -> Html:
    return element("figure", None, element("figcaption", None, name), plot)


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]], style: str = "") -> Html:
    head = element("tr", None, *(element("th", {"scope": "col"}, name) for name in columns))
    body = (element("tr", None, *(element("td", None, cell) for cell in row)) for row in rows)
    return element("div", {"class": "wide"}, element("table", {"class": style}, head, *body))
