"""The report: numbers, how they came about, and what they show; no text of the file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chatglm3.evaluate.markdown import escape
from chatglm3.evaluate.paired import format_p, format_points, sentence
from chatglm3.evaluate.text import COLUMNS, format_interval, table

from ..nano.data import NEGATIVE, POSITIVE, Review
from .data import Parts
from .measuring import Comparison, Measured
from .tuning import BATCH, Route, Trial

BEGINNING = """# Fine-tuning on takeaway reviews

The bundled Chat model and the bundled Base model, each fine-tuned by LoRA to tell whether a takeaway review is 正面
or 负面, and measured on reviews that neither saw. Both were trained on labelled reviews of other things before: they
know the task, and not the field. They have 4.7 million weights. The numbers are about them and about the method, not
about the 6B models."""
ENDING = """The review in these prompts was written for this project. A row to train on is the same prompt
and its label, as `chatglm3 train` makes it of a file."""
MEASURED = """Label scoring takes the most probable label; free generation writes an answer, greedily. The examples in a
prompt are rows to train on, drawn for three seeds. The intervals are Wilson's, of 95 %."""
DIFFERENCES = """By label scoring, on the same rows: a paired bootstrap of the rows, and McNemar's exact test. With
examples, a row is right if it is so for more of the seeds."""
COMPARED = ("first − second", "points", "95 % interval", "only first right", "only second right", "McNemar")


@dataclass(frozen=True)
class Experiment:
    """What is reported: the trials of each route, and all measurements of the chosen ones."""

    file: str
    command: str
    seed: int
    parts: Parts
    trials: tuple[tuple[Route, tuple[Trial, ...], Trial], ...]
    """Each route, all its trials, and the chosen one."""
    measured: Measured
    seconds: float
    """Of measuring; training has its own."""


def markdown(experiment: Experiment) -> str:
    """The whole report."""
    measured = experiment.measured
    sections = [
        BEGINNING,
        "## What the held-out rows show",
        *(f"- {escape(sentence(c.difference, c.first, c.second))}" for c in measured.comparisons),
        _caution(measured),
        "## Measured",
        _grid(COLUMNS[:8], _measurements(measured)),
        MEASURED,
        "## Differences in accuracy",
        _grid(COMPARED, [_difference(comparison) for comparison in measured.comparisons]),
        DIFFERENCES,
        "## Settings tried",
        *_settings(experiment),
        "## How it was made",
        _grid(("what", "value"), list(_facts(experiment))),
        "## Prompts",
        *_prompts(measured),
        ENDING,
    ]
    return "\n\n".join(sections) + "\n"


def _caution(measured: Measured) -> str:
    return (
        f"{len(measured.comparisons)} comparisons were made; one in twenty shows a difference by chance where there is "
        "none. One training run of each route was measured: what another one would give is not in the intervals."
    )


def _measurements(measured: Measured) -> list[list[str]]:
    states = [
        (when, report)
        for route in measured.routes
        for when, report in (("as it was", route.before), ("fine-tuned", route.after))
    ]
    rows = [[f"{row[0]}, {when}", *row[1:8]] for when, report in states for row in table(report)]
    plain = [
        [b.name, "", "", f"{100 * b.accuracy:.1f} %", format_interval(b.interval), f"{b.macro_f1:.3f}", "", ""]
        for b in measured.baselines
    ]
    return rows + plain


def _difference(comparison: Comparison) -> list[str]:
    found = comparison.difference
    return [
        f"{comparison.first} − {comparison.second}",
        format_points(found.value),
        f"{format_points(found.interval.low)} to {format_points(found.interval.high)}",
        f"{found.first_only:,} rows",
        f"{found.second_only:,} rows",
        format_p(found.p_value),
    ]


def _settings(experiment: Experiment) -> Iterator[str]:
    for route, trials, chosen in experiment.trials:
        yield f"### {route.kind}"
        yield _grid(
            ("layers", "rank", "learning rate", "epochs", "steps", "validation loss", "validation accuracy", "chosen"),
            [
                [
                    ", ".join(trial.setting.targets),
                    str(trial.setting.rank),
                    f"{trial.setting.rate:g}",
                    str(trial.setting.epochs),
                    f"{trial.steps:,}",
                    f"{trial.loss:.4f}",
                    f"{100 * trial.accuracy:.1f} %",
                    "yes" if trial is chosen else "",
                ]
                for trial in trials
            ],
        )
    yield (
        f"{BATCH} rows a step; alpha four times the rank, dropout 0.1, AdamW, cosine. The loss is −log p of the true "
        "label. Chosen is the best validation accuracy by label scoring, of equals the one with the smaller loss."
    )


def _facts(experiment: Experiment) -> Iterator[tuple[str, str]]:
    parts, cleaning = experiment.parts, experiment.parts.cleaning
    yield "command", experiment.command
    yield "file", f"{experiment.file}, {cleaning.rows:,} rows"
    yield (
        "left out",
        (
            f"{cleaning.repeated:,} that repeat a text (but for case, space, punctuation and width) or have none, "
            f"{cleaning.contradictory:,} with a text that has both labels, {cleaning.known:,} that the bundled models "
            f"were trained on, {cleaning.near:,} that nearly repeat a row of a part that is measured"
        ),
    )
    yield "split", f"the rest shuffled with seed {experiment.seed}; no text is in two parts"
    for name, rows in (("train", parts.train), ("validation", parts.validation), ("held out", parts.held_out)):
        yield f"{name} rows", _counts(rows)
    for route in experiment.measured.routes:
        for when, report in (("", route.before), (", fine-tuned", route.after)):
            yield f"{route.kind}{when}", f"{report.models[0].name}: {report.models[0].about}"
    training = [trial.seconds for _, trials, _ in experiment.trials for trial in trials]
    yield (
        "time",
        (
            f"{sum(training) / 60:.0f} minutes for {len(training)} training runs with their validation, "
            f"{experiment.seconds / 60:.0f} minutes to measure"
        ),
    )
    yield from experiment.measured.routes[-1].after.about.items()


def _counts(rows: Sequence[Review]) -> str:
    counts = Counter(row.label for row in rows)
    return f"{len(rows):,} ({', '.join(f'{label} {counts[label]:,}' for label in (POSITIVE, NEGATIVE))})"


def _prompts(measured: Measured) -> Iterator[str]:
    """Without examples: those with examples would show the file's own texts."""
    for route in measured.routes:
        prompt = route.after.models[0].prompts[0]
        yield f"### {prompt.title}"
        yield "\n".join(f"    {line}" for line in prompt.text.splitlines())


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [map(escape, columns), ["---"] * len(columns), *(map(escape, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
