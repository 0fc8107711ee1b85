"""`chatglm3 run`: ask a model the same of every row of a file."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from chatglm3.cli.job import carry_out, model_source
from chatglm3.cli.job_file import is_job_file, run_job_file
from chatglm3.cli.job_options import (
    Column,
    DryRun,
    Encoding,
    HistoryFile,
    Input,
    JsonLines,
    Limit,
    Output,
    OutputPrefix,
    Prompt,
    Sample,
    System,
    Truncate,
    read_history,
    require_asked,
    split_list,
)
from chatglm3.cli.options import Loading, Model, with_options
from chatglm3.engine.params import SamplingOptions, SamplingParams


def _greedy(command: Callable[..., None]) -> Callable[..., None]:
    """A job is greedy unless it is told otherwise, so that it can be repeated."""
    signature = inspect.signature(command)
    parameters = [p.replace(default=0.0) if p.name == "temperature" else p for p in signature.parameters.values()]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return command


@_greedy
@with_options
def command(
    context: typer.Context,
    input: Input,
    output: Output = None,
    *,
    model: Model = "nano",
    prompt: Prompt = None,
    column: Column = None,
    system: System = None,
    history: HistoryFile = None,
    choices: Annotated[list[str] | None, typer.Option(help="The only answers: 是,否; or repeated.")] = None,
    json_schema: Annotated[Path | None, typer.Option(help="JSON file: what every answer is valid against.")] = None,
    truncate: Truncate = False,
    limit: Limit = None,
    sample: Sample = None,
    encoding: Encoding = None,
    output_prefix: OutputPrefix = "",
    dry_run: DryRun = False,
    as_json: JsonLines = False,
    loading: Loading,
    sampling: SamplingOptions,
) -> None:
    """Ask the same of every row of a file; OUTPUT is the input with the answers beside it.

    A Base model continues the prompt. A bad row has its error in its row. Stopped, killed or failed, the job goes on
    when the same command is run again.
    """
    if is_job_file(input):
        run_job_file(context, input)
        return
    output = require_asked(output, prompt, column, system)
    if truncate and sampling.get("max_new_tokens") is None and not choices:
        raise typer.BadParameter("give --max-new-tokens with --truncate: it is the room that is left for the answer")

    from chatglm3.bulk import RunJob
    from chatglm3.cli.history_file import read_json

    seed = sampling.get("seed")
    job = RunJob(
        input=input,
        output=output,
        prompt=prompt,
        column=column,
        system=system,
        history=read_history(history),
        choices=split_list(choices) if choices else None,
        json_schema=read_json(json_schema) if json_schema else None,
        truncate=truncate,
        limit=limit,
        sample=sample,
        seed=0 if seed is None else seed,
        encoding=encoding,
        output_prefix=output_prefix,
        sampling=SamplingParams.of({**sampling, "seed": None}),
    )
    carry_out(job, model_source(model, loading), dry_run=dry_run, as_json=as_json)
