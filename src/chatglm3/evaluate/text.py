"""What every form of a report says: the table, the findings, the facts; and the report as JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from chatglm3.evaluate.measuring import ModelResult
from chatglm3.evaluate.metrics import Interval
from chatglm3.evaluate.paired import format_p, format_points, sentence
from chatglm3.evaluate.report import Report
from chatglm3.evaluate.run import shots_name, way_name
from chatglm3.evaluate.summary import Condition, Spread

COLUMNS = (
    "model",
    "prompt",
    "method",
    "accuracy",
    "95 % interval",
    "macro-F1",
    "ECE",
    "no label",
    "ms a row",
    "tokens a row",
)
EXPLANATION = (
    "Accuracy, macro-F1 and ECE are means over the seeds, with their standard deviation. The interval is Wilson's, "
    "for so many rows. ECE is the expected calibration error of the label's probability in ten bins. “No label” is the "
    "share of free answers that are not exactly a label; each counts as wrong. Tokens are prompt (of which "
    "computed anew) + answer."
)


def title(report: Report) -> str:
    """What was measured, in a few words."""
    titles = " against ".join(model.title for model in report.models)
    return f"{titles} on {report.rows:,} rows"


def findings(report: Report) -> list[str]:
    """What the rows show of the two models, a sentence for each way of asking and one on their number."""
    if not report.differences:
        return []
    ways = [way_name(condition.shots, condition.method) for condition in report.models[0].conditions]
    names = [model.title for model in report.models]
    found = [f"{way.capitalize()}: {sentence(d, *names)}" for way, d in zip(ways, report.differences, strict=True)]
    return [*found, _caution(report)]


def _caution(report: Report) -> str:
    tests = len(report.differences)
    seeds = " The intervals are about other rows, not about other examples: that is the spread over the seeds."
    return (
        f"{tests} comparisons were made; one in twenty shows a difference by chance where there is none."
        f"{seeds if report.seeds else ''}"
    )


def difference_columns(report: Report) -> list[str]:
    """What stands above `differences`."""
    first, second = (model.title for model in report.models)
    right = [f"only {first} right", f"only {second} right"]
    return [f"{first} − {second}", "points", "95 % interval", *right, "McNemar", "detectable"]


def differences(report: Report) -> list[list[str]]:
    """A row for each way of asking, under `difference_columns`; none for one model alone."""
    return [
        [
            way_name(condition.shots, condition.method),
            format_points(found.value),
            f"{format_points(found.interval.low)} to {format_points(found.interval.high)}",
            f"{found.first_only:,} rows",
            f"{found.second_only:,} rows",
            format_p(found.p_value),
            f"from {100 * found.detectable:.1f}",
        ]
        for condition, found in zip(report.models[0].conditions, report.differences, strict=False)
    ]


def table(report: Report) -> list[list[str]]:
    """A row for each model and way of asking, under `COLUMNS`."""
    return [_row(model, condition) for model in report.models for condition in model.conditions]


def _beside(model: ModelResult) -> str:
    """The adapter as a table has room for it."""
    return "" if model.adapter is None else f" + {Path(model.adapter).resolve().name}"


def _row(model: ModelResult, condition: Condition) -> list[str]:
    scoring = condition.method == "scoring"
    tokens = f"{condition.prompt_tokens:.0f} ({condition.computed_tokens:.0f}) + {condition.completion_tokens:.0f}"
    return [
        f"{model.kind} {model.name}{_beside(model)}",
        shots_name(condition.shots),
        "label scoring" if scoring else "free generation",
        format_spread(condition.accuracy, 100, " %"),
        format_interval(condition.interval),
        format_spread(condition.macro_f1, 1),
        format_spread(condition.calibration, 1) if condition.calibration else "",
        "" if scoring and not condition.invalid else f"{100 * condition.invalid:.1f} %",
        f"{1000 * condition.seconds:.3g}",
        tokens,
    ]


def format_spread(spread: Spread, scale: float, unit: str = "") -> str:
    """A mean, and behind ± its deviation."""
    digits = 1 if scale == 100 else 3
    deviation = "" if spread.deviation is None else f" ± {scale * spread.deviation:.{digits}f}"
    return f"{scale * spread.mean:.{digits}f}{deviation}{unit}"


def format_interval(interval: Interval) -> str:
    """An interval of shares, in per cent."""
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"


def facts(report: Report) -> list[tuple[str, str]]:
    """What was measured: models, rows, examples, wording, and when and where."""
    counts = ", ".join(f"{label} {count:,}" for label, count in report.label_counts.items())
    drawn = f"{report.examples} from {report.train_rows:,} other rows, {report.seeds} seeds (0 to {report.seeds - 1})"
    repeats = f"; {report.repeats:,} that repeat a measured text were left out" if report.repeats else ""
    return [
        *((f"{model.kind} model", f"{_described(model)}: {model.about}") for model in report.models),
        ("rows", f"{report.rows:,} ({counts})"),
        ("examples", f"{drawn}{repeats}" if report.seeds else "none"),
        ("label scoring", "the most probable label, per token; nothing is generated"),
        ("free generation", "greedy; the answer without space around it must be a label"),
        *report.about.items(),
    ]


def _described(model: ModelResult) -> str:
    return model.name if model.adapter is None else f"{model.name} with the adapter {model.adapter}"


def remarks(report: Report) -> list[str]:
    """A line on labels that no row has, and one for each condition in which rows failed."""
    absent = [label for label, count in report.label_counts.items() if not count]
    unseen = (
        f"No measured row is labelled {', '.join(absent)}: nothing is said about that, and macro-F1 counts it as 0."
    )
    return [unseen] * bool(absent) + [
        f"{model.title}, {way_name(c.shots, c.method)}: {c.failed} failed and count as wrong ({c.first_error})"
        for model in report.models
        for c in model.conditions
        if c.failed
    ]


def json_report(report: Report) -> str:
    """Everything as one JSON object, the answer to every row included; no text of the rows but for the prompts."""
    record = dataclasses.asdict(report) | {"findings": findings(report), "remarks": remarks(report)}
    return json.dumps(record, ensure_ascii=False, indent=1) + "\n"
