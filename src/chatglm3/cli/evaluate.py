"""`chatglm3 evaluate`: Chat, Base or both on labelled rows, with what the rows do and do not show."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from chatglm3.cli.options import Loading, check_bits
from chatglm3.errors import JobError, MessageError

if TYPE_CHECKING:
    from rich.progress import Progress

    from chatglm3.evaluate import Question, Report

_NAMES = '"nano", "nano-base", a folder, a Hugging Face id or modelscope:ID.'


def _parse_labels(text: str) -> dict[str, str]:
    """Labels, and what each is called in the file: 正面=1,负面=0, or just 正面,负面."""
    pairs = [part.partition("=")[::2] for part in re.split("[,，]", text)]
    labels = {name.strip(): (value or name).strip() for name, value in pairs}
    if len(labels) < len(pairs) or len(set(labels.values())) < len(pairs):
        raise typer.BadParameter("each label is given once, and so is each value in the file")
    return labels


def _check_output(path: Path | None) -> Path | None:
    if path is not None and not path.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.parent}; make it first")
    return path


def _adapter(kind: str) -> Any:
    return typer.Option(help=f"Folder of a LoRA or P-Tuning v2 adapter for the {kind} model.")


def _output(what: str) -> Any:
    return typer.Option(dir_okay=False, writable=True, callback=_check_output, help=f"Write {what} to this file.")


def command(
    data: Annotated[Path, typer.Argument(help="Labelled rows: JSONL, CSV, TSV or Parquet.")],
    *,
    labels: Annotated[str, typer.Option(help="正面,负面; or 正面=1,负面=0 with the values in the file.")],
    chat: Annotated[str | None, typer.Option(help=f"The Chat model: {_NAMES}")] = None,
    base: Annotated[str | None, typer.Option(help="The Base model, named in the same way.")] = None,
    chat_adapter: Annotated[Path | None, _adapter("Chat")] = None,
    base_adapter: Annotated[Path | None, _adapter("Base")] = None,
    examples: Annotated[int, typer.Option(min=0, help="Examples in a prompt, besides none; 0: only none.")] = 4,
    seeds: Annotated[int, typer.Option(min=1, help="How often the examples are drawn.")] = 3,
    system: Annotated[str | None, typer.Option(help="The instruction.", show_default="names the labels")] = None,
    prompt: Annotated[str, typer.Option(help="Template of a text, with {text} or {column} in it.")] = "{text}",
    base_system: Annotated[
        str | None, typer.Option(help="The instruction for Base; empty: none.", show_default="that of --system")
    ] = None,
    base_prompt: Annotated[
        str | None,
        typer.Option(help="The template for Base.", show_default="that of --prompt, and 答案： on a new line"),
    ] = None,
    text_column: Annotated[str, typer.Option(help="Column of the text.")] = "review",
    label_column: Annotated[str, typer.Option(help="Column of the label.")] = "label",
    train: Annotated[Path | None, typer.Option(help="File to draw examples from.")] = None,
    train_fraction: Annotated[
        float | None, typer.Option(min=0, max=0.9, help="Or the share of DATA to draw them from.", show_default="0.2")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first rows of DATA.")] = None,
    sample: Annotated[int | None, typer.Option(min=1, help="Measure so many rows, drawn at random.")] = None,
    encoding: Annotated[str | None, typer.Option(help="Encoding of CSV and JSONL.", show_default="found out")] = None,
    report: Annotated[Path | None, _output("a page for browsers")] = None,
    markdown: Annotated[Path | None, _output("Markdown")] = None,
    json: Annotated[Path | None, _output("everything, each row's answer included, as JSON")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace reports that are there.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    quantize: Annotated[int | None, typer.Option(callback=check_bits, help="Store the weights in 8 or 4 bits.")] = None,
    max_context: Annotated[int | None, typer.Option(min=1, help="Most tokens of prompt and answer.")] = None,
) -> None:
    """Measure Chat, Base or both on labelled rows, each with the prompts it was trained for.

    Without and with examples, by label scoring and by free generation; prints a table and what the rows show. One model
    alone that has an adapter is measured with it and without it.
    """
    values = _parse_labels(labels)
    if chat is None and base is None:
        raise typer.BadParameter("give --chat, --base or both")
    for name, folder, option in ((chat, chat_adapter, "--chat"), (base, base_adapter, "--base")):
        if name is None and folder is not None:
            raise typer.BadParameter(f"{option}-adapter needs a model that it is put on; give {option} too")
    if train is not None and train_fraction is not None:
        raise typer.BadParameter("give --train or --train-fraction, not both")
    outputs = [path for path in (report, markdown, json) if path is not None]
    _refuse_naming_twice(outputs, [data] if train is None else [data, train])
    question = _question(tuple(values), text_column, system, prompt, base_system, base_prompt)

    from chatglm3 import evaluate
    from chatglm3.model.adapters import find_adapter

    if not overwrite:
        _refuse_overwriting(outputs)
    for folder in filter(None, (chat_adapter, base_adapter)):
        find_adapter(folder)  # an error now, not after the first model
    rows = evaluate.read_sample(
        data,
        values,
        train=train,
        train_fraction=(0.2 if train_fraction is None else train_fraction) if examples else 0,
        text_column=text_column,
        label_column=label_column,
        limit=limit,
        sample=sample,
        encoding=encoding,
    )
    loading = Loading(device=device, dtype=dtype, quantize=quantize, max_context=max_context)
    with _progress() as bar:
        task = bar.add_task("", total=None)
        found = evaluate.compare(
            rows,
            question,
            chat=chat,
            base=base,
            chat_adapter=chat_adapter,
            base_adapter=base_adapter,
            examples=examples,
            seeds=seeds,
            load=loading.load,
            progress=lambda step, done, total: bar.update(task, description=step, completed=done, total=total),
        )
    _print(found)
    writers = (evaluate.html_report, evaluate.markdown_report, evaluate.json_report)
    for path, write in zip((report, markdown, json), writers, strict=True):
        if path is not None:
            path.write_text(write(found), encoding="utf-8")


def _question(
    labels: tuple[str, ...],
    column: str,
    system: str | None,
    prompt: str,
    base_system: str | None,
    base_prompt: str | None,
) -> Question:
    """The question; labels or templates that cannot be used are a usage error."""
    from chatglm3.evaluate import Question

    def template(text: str) -> str:
        return text.replace(f"{{{column}}}", "{text}")

    try:
        return Question(
            labels, system, template(prompt), base_system, None if base_prompt is None else template(base_prompt)
        )
    except MessageError as error:
        raise typer.BadParameter(str(error)) from None


def _refuse_overwriting(outputs: list[Path]) -> None:
    for path in outputs:
        if path.exists():
            raise JobError(f"{path} exists; give another name, or --overwrite")


def _refuse_naming_twice(outputs: list[Path], inputs: list[Path]) -> None:
    places = [path.resolve() for path in (*outputs, *inputs)]
    for path in outputs:
        if places.count(path.resolve()) > 1:
            raise typer.BadParameter(f"{path} is named twice; give each output a file of its own")


def _progress() -> Progress:
    """A bar on standard error, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _print(report: Report) -> None:
    """The table, and a line for each finding."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from chatglm3.evaluate.text import COLUMNS, findings, remarks, table, title

    grid = Table(*COLUMNS, box=None, pad_edge=False)
    for row in table(report):
        grid.add_row(*map(Text, row))
    console = Console()
    console = console if console.is_terminal else Console(width=160)
    typer.echo(title(report))
    console.print(grid)
    for line in (*findings(report), *remarks(report)):
        typer.echo(line)
