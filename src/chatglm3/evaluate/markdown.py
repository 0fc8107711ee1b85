"""A report as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from chatglm3.evaluate.measuring import ModelResult
from chatglm3.evaluate.report import Report
from chatglm3.evaluate.run import way_name
from chatglm3.evaluate.text import (
    COLUMNS,
    EXPLANATION,
    difference_columns,
    differences,
    facts,
    findings,
    remarks,
    table,
    title,
)


def markdown_report(report: Report) -> str:
    """The report as Markdown (with tables, as on GitHub)."""
    parts = [f"# {title(report)}", *(f"- {escape(line)}" for line in (*findings(report), *remarks(report)))]
    if report.differences:
        parts += ["## Difference", _grid(difference_columns(report), differences(report))]
    parts += ["## Measured", _grid(COLUMNS, table(report)), EXPLANATION]
    for model in report.models:
        parts += [f"## Labels of {model.title}", *_labels(model, report.question.labels)]
    prompts = dict.fromkeys(prompt for model in report.models for prompt in model.prompts)
    parts += ["## Prompts", *(f"### {prompt.title}\n\n{_code(prompt.text)}" for prompt in prompts)]
    parts += ["## About", _grid(("what", "value"), facts(report))]
    return "\n\n".join(parts) + "\n"


def _labels(model: ModelResult, labels: Sequence[str]) -> Iterator[str]:
    """For each condition: precision, recall, F1 and support of each label, and how often each answer was given."""
    columns = ("label", "precision", "recall", "F1", "rows", *(f"answered {label}" for label in (*labels, "no label")))
    for condition in model.conditions:
        yield f"### {model.title}: {way_name(condition.shots, condition.method)}"
        yield _grid(
            columns,
            [
                [c.label, f"{c.precision:.3f}", f"{c.recall:.3f}", f"{c.f1:.3f}", str(c.support), *map(str, row)]
                for c, row in zip(condition.classes, condition.confusion, strict=True)
            ],
        )


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [map(escape, columns), ["---"] * len(columns), *(map(escape, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(text: str) -> str:
    """An indented block, which no text can end."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def escape(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", " ".join(text.split()))
