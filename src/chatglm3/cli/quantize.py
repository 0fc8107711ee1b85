"""`chatglm3 quantize`: write a quantised copy of a model, which loads in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from chatglm3.cli.options import Json, ModelArgument, check_bits
from chatglm3.cli.output import print_json

if TYPE_CHECKING:
    from rich.progress import Progress


def _check_group_size(size: int) -> int:
    if size not in (32, 64, 128):
        raise typer.BadParameter(f"use 32, 64 or 128, not {size}")
    return size


def original(model: str) -> Path:
    """The folder of a model to make a copy of. Raises the tokenizer's error if the copy could not answer."""
    from chatglm3.model.hub import resolve
    from chatglm3.tokenizer import Tokenizer

    folder = resolve(model)
    if (folder / "config.json").is_file():  # if not, copying says what is wrong
        Tokenizer.from_pretrained(folder)
    return folder


def byte_progress() -> Progress:
    """A bar on standard error, if that is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def command(
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(help="The folder to write; it must not exist or be empty.")],
    *,
    bits: Annotated[int, typer.Option(callback=check_bits, help="8 or 4; embedding and output layer get 8.")] = 4,
    group_size: Annotated[
        int, typer.Option(callback=_check_group_size, help="Weights that share a scale: 32, 64 or 128.")
    ] = 32,
    as_json: Json = False,
) -> None:
    """Write a quantised copy of a model, which loads in seconds.

    Needs little memory. OUT appears when it is complete; until then there is a hidden folder .OUT.incomplete beside it,
    which the next attempt uses again if this one is killed.
    """
    from chatglm3.cli.memory import format_bytes
    from chatglm3.model.quantization import Quantization
    from chatglm3.model.quantize_checkpoint import quantize_checkpoint

    folder = original(model)
    with byte_progress() as bar:
        task = bar.add_task("quantising", total=None)
        written = quantize_checkpoint(
            folder,
            out,
            Quantization(bits, group_size),
            lambda done, total: bar.update(task, completed=done, total=total),
        )
    if as_json:
        print_json(
            {
                "model": model,
                "folder": str(out),
                "bits": bits,
                "group_size": group_size,
                "bytes": written.nbytes,
                "relative_error": written.relative_error,
            }
        )
    else:
        typer.echo(f"{out}: {format_bytes(written.nbytes)}")
        for kind, error in written.relative_error.items():
            typer.echo(f"  {kind:<18}relative error {error:.4f}")
