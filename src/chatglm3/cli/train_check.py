"""`chatglm3 train check`: what a model will see of a data file, before a step is taken."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chatglm3.cli.check_report import lines, overlap_line, print_row, record
from chatglm3.cli.options import Json
from chatglm3.cli.output import print_json
from chatglm3.errors import DataError, DownloadError

if TYPE_CHECKING:
    from chatglm3.train.dataset import Dataset


def check(
    data: Annotated[Path, typer.Argument(help="Rows to train on: JSON, JSONL, CSV, TSV or Parquet.")],
    *,
    model: Annotated[
        str | None,
        typer.Option(
            envvar="CHATGLM3_MODEL",
            help="The model to be trained: its tokens are counted, and that the data are for it is checked.",
            show_default="the tokens of nano",
        ),
    ] = None,
    val: Annotated[Path | None, typer.Option(help="The validation rows: what they share with DATA is counted.")] = None,
    max_length: Annotated[int, typer.Option(min=8, help="Most tokens of a row.")] = 1024,
    train_on_observation: Annotated[bool, typer.Option(help="Also learn the results of tools.")] = False,
    show: Annotated[int, typer.Option(min=0, help="Spell out so many rows.")] = 3,
    row: Annotated[list[int] | None, typer.Option(help="Spell out this row instead; may be repeated.")] = None,
    encoding: Annotated[str | None, typer.Option(help="Encoding of CSV and JSONL.", show_default="found out")] = None,
    as_json: Json = False,
) -> None:
    """Show what a model will see of DATA: tokens that are learned and context, lengths, repeats, what is dropped.

    The exit status is 1 if the data cannot be used, or are for the other sort of model.
    """
    from chatglm3.tokenizer import Tokenizer
    from chatglm3.train.dataset import load_dataset

    name = model or "nano"
    folder = _find(name)
    tokenizer = Tokenizer.from_pretrained(folder)
    load = partial(
        load_dataset,
        tokenizer=tokenizer,
        max_length=max_length,
        train_on_observation=train_on_observation,
        encoding=encoding,
    )
    train = load(data)
    validation = None if val is None else load(val, kind=train.kind)
    places = _chosen(train, row, show)
    if as_json:
        print_json(record(data, name, train, validation))
    else:
        _print(data, name, train, val, validation)
        for place in places:
            print_row(tokenizer, train.numbers[place], train.rows[place])
    if model is not None:
        _require_fitting(train, name, folder)


def _print(data: Path, model: str, train: Dataset, val: Path | None, validation: Dataset | None) -> None:
    for line in lines(data, model, train, "train on"):
        typer.echo(line)
    if val is not None and validation is not None:
        for line in ("", *lines(val, model, validation, "validate with"), overlap_line(data, train, validation)):
            typer.echo(line)


def _find(model: str) -> Path:
    """The folder with a model's config and tokenizer; no weights are fetched."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    from chatglm3.model.hub import resolve

    if Path(model).expanduser().is_dir() or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", model):
        if model.startswith("modelscope:"):
            raise DownloadError(f"{model}: give the folder that `chatglm3 download {model}` prints")
        return resolve(model)
    try:
        return Path(snapshot_download(model, allow_patterns=["*.json", "tokenizer.model"]))
    except (HfHubHTTPError, LocalEntryNotFoundError):
        raise DownloadError(
            f"{model}: not on this disk, and its tokenizer cannot be fetched; check the name and the connection"
        ) from None


def _require_fitting(train: Dataset, name: str, folder: Path) -> None:
    from chatglm3.capabilities import capabilities_of
    from chatglm3.model.config import ModelConfig
    from chatglm3.train.dataset import other_kind

    can = capabilities_of(name, ModelConfig.from_pretrained(folder))
    problem = other_kind(train.kind, chat_model=can.chat, model=name)
    if problem:
        raise DataError(problem)


def _chosen(train: Dataset, wanted: Sequence[int] | None, show: int) -> list[int]:
    """The places of the rows to spell out."""
    if not wanted:
        return list(range(min(show, len(train.rows))))
    for number in wanted:
        if number not in train.numbers:
            reasons = [reason for reason, rows in train.dropped_rows.items() if number in rows]
            raise DataError(f"row {number} {'is dropped: ' + reasons[0] if reasons else 'does not exist'}")
    return [place for number in wanted for place, own in enumerate(train.numbers) if own == number]
