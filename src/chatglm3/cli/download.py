"""`chatglm3 download`: fetch a model once, and say in which folder it is."""

from __future__ import annotations

from typing import Annotated

import typer

from chatglm3.cli.options import Json, ModelArgument
from chatglm3.cli.output import print_json


def command(
    model: ModelArgument,
    *,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of the hub.")] = None,
    as_json: Json = False,
) -> None:
    """Fetch a model if it is not here yet, and print its folder.

    Only weights, JSON files and tokenizer.model are fetched. A download that was stopped goes on from there.
    """
    from chatglm3.model.hub import resolve

    folder = resolve(model, revision=revision)
    if as_json:
        print_json({"model": model, "folder": str(folder)})
    else:
        typer.echo(folder)
