"""A job on the command line: its progress, for people and for machines, and what it came to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from chatglm3.cli.options import Loading
from chatglm3.cli.output import print_json
from chatglm3.errors import JobError

if TYPE_CHECKING:
    from chatglm3.bulk import Job, Preview, Progress, Source, Summary


def model_source(model: str, loading: Loading) -> Source:
    """The model of a job, called what the command line calls it."""
    from chatglm3.bulk import Source

    bits = None if loading.quantize is None else f"{loading.quantize} bits"
    adapter = None if loading.adapter is None else f"adapter {loading.adapter}"
    return Source(", ".join(filter(None, (model, bits, adapter))), lambda: loading.load(model))


def carry_out(job: Job, source: Source, *, dry_run: bool, as_json: bool) -> None:
    """Do the job, or show what it would do; `JobError` at the end of one in which every row failed."""
    from chatglm3.bulk import preview, run_job
    from chatglm3.bulk.journal import journal_folder

    if dry_run:
        _show_preview(preview(job, source), as_json)
        return
    with _bar() if not as_json else _json_lines() as tell:
        try:
            summary = run_job(job, source, tell)
        except KeyboardInterrupt:
            kept = "what is done is kept, and the same command goes on with it"
            typer.echo(f"stopped; {kept if journal_folder(job.output).exists() else 'nothing was done yet'}", err=True)
            raise
    _show_summary(summary, as_json)
    if summary.errors == summary.rows:
        raise JobError(f"no row of {summary.output} has a result; its column {job.output_prefix}error says why")


@contextmanager
def _json_lines() -> Iterator[Callable[[Progress], None]]:
    yield lambda progress: print_json({"event": "progress", **_numbers(progress)})


@contextmanager
def _bar() -> Iterator[Callable[[Progress], None]]:
    """A bar on standard error, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading", total=None)
        yield lambda now: bar.update(task, completed=now.rows, total=now.total, description=_speed(now))


def _speed(progress: Progress) -> str:
    left = progress.seconds_left
    return (
        f"{progress.rows_per_second:,.1f} rows/s, {progress.tokens_per_second:,.0f} tokens/s, "
        f"{progress.prefix_hits:.0%} of the prompts reused, {'?' if left is None else _time(left)} left"
    )


def _numbers(progress: Progress) -> dict[str, int | float | None]:
    left = progress.seconds_left
    return {
        **dataclasses.asdict(progress),
        "seconds": round(progress.seconds, 3),
        "rows_per_second": round(progress.rows_per_second, 3),
        "tokens_per_second": round(progress.tokens_per_second, 3),
        "prefix_hits": round(progress.prefix_hits, 4),
        "seconds_left": None if left is None else round(left, 1),
    }


def _show_summary(summary: Summary, as_json: bool) -> None:
    if as_json:
        about = {"output": str(summary.output), "prompts": summary.prompts}
        errors = [{"row": row, "error": error} for row, error in summary.first_errors]
        print_json({"event": "summary", **about, **_numbers(summary.progress), "first_errors": errors})
        return
    different = f" (different prompts: {summary.prompts:,})" if summary.prompts < summary.rows - summary.errors else ""
    typer.echo(f"{summary.output}: {summary.rows:,} rows{different}, {summary.errors:,} with an error")
    for row, error in summary.first_errors:
        typer.echo(f"  row {row:,}: {error}")
    if summary.errors > len(summary.first_errors):
        typer.echo("  …")
    progress = summary.progress
    if progress.rows > progress.resumed:
        typer.echo(f"{_time(progress.seconds)}: {_speed(progress).rpartition(', ')[0]}")


def _show_preview(found: Preview, as_json: bool) -> None:
    if as_json:
        print_json({"event": "dry_run", **dataclasses.asdict(found), "seconds": round(found.seconds, 1)})
        return
    for text in found.shown:
        typer.echo(f"{text}\n")
    typer.echo(
        f"{found.rows:,} rows, {found.prompts:,} prompts to compute, {found.bad_rows:,} rows without one; "
        f"about {_time(found.seconds)}"
    )


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
