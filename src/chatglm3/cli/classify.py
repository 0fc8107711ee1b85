"""`chatglm3 classify`: give every row of a file one of a few labels."""

from __future__ import annotations

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
from chatglm3.cli.options import Loading, Model, check_bits


def command(
    context: typer.Context,
    input: Input,
    output: Output = None,
    *,
    labels: Annotated[list[str] | None, typer.Option(help="正面,负面; or repeated.")] = None,
    model: Model = "nano",
    prompt: Prompt = None,
    column: Column = None,
    system: System = None,
    history: HistoryFile = None,
    examples: Annotated[Path | None, typer.Option(help="Rows like the input's, with their label in a column.")] = None,
    example_label: Annotated[str, typer.Option(help="That column.")] = "label",
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Take out the model's prejudice.")] = False,
    truncate: Truncate = False,
    limit: Limit = None,
    sample: Sample = None,
    seed: Annotated[int, typer.Option(help="Of --sample.")] = 0,
    encoding: Encoding = None,
    output_prefix: OutputPrefix = "",
    dry_run: DryRun = False,
    as_json: JsonLines = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    quantize: Annotated[int | None, typer.Option(callback=check_bits, help="Store the weights in 8 or 4 bits.")] = None,
    adapter: Annotated[Path | None, typer.Option(help="Folder of a LoRA or P-Tuning v2 adapter.")] = None,
    max_context: Annotated[int | None, typer.Option(min=1, help="Most tokens of prompt and answer together.")] = None,
) -> None:
    """Give every row the most probable label; OUTPUT is the input with label and probabilities beside it.

    Nothing is generated, so the answer is always one of the labels. Stopped, killed or failed, the job goes on when
    the same command is run again.
    """
    if is_job_file(input):
        run_job_file(context, input)
        return
    output = require_asked(output, prompt, column, system)
    if not labels:
        raise typer.BadParameter("give --labels")

    from chatglm3.classify import check_labels
    from chatglm3.errors import MessageError

    try:
        check_labels(split_list(labels))
    except MessageError as error:
        raise typer.BadParameter(str(error)) from None

    from chatglm3.bulk import ClassifyJob
    from chatglm3.bulk.examples import read_examples
    from chatglm3.bulk.template import Template

    template = Template.parse(prompt) if prompt is not None else Template.of_column(column or "")
    job = ClassifyJob(
        input=input,
        output=output,
        labels=split_list(labels),
        prompt=prompt,
        column=column,
        system=system,
        history=read_history(history),
        examples=read_examples(examples, template, example_label) if examples else (),
        calibrate=calibrate,
        truncate=truncate,
        limit=limit,
        sample=sample,
        seed=seed,
        encoding=encoding,
        output_prefix=output_prefix,
    )
    loading = Loading(device=device, dtype=dtype, quantize=quantize, adapter=adapter, max_context=max_context)
    carry_out(job, model_source(model, loading), dry_run=dry_run, as_json=as_json)
