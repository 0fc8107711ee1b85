"""`chatglm3 complete`: continue plain text, which is what Base models are made for."""

from __future__ import annotations

from typing import Annotated

import typer

from chatglm3.cli.options import Json, Loading, Model, with_options
from chatglm3.cli.output import completion_record, print_json
from chatglm3.cli.text import read_text
from chatglm3.engine.params import SamplingOptions


@with_options
def command(
    prompt: Annotated[str | None, typer.Argument(help="The text to continue; piped input comes before it.")] = None,
    *,
    model: Model = "nano-base",
    as_json: Json = False,
    loading: Loading,
    sampling: SamplingOptions,
) -> None:
    """Continue plain text; only what is new is printed.

    The text is PROMPT, or what is piped in; with both, PROMPT follows what is piped in on a new line.
    """
    text = read_text(prompt, "prompt")
    with loading.load(model) as glm:
        completion = glm.complete(text, **sampling)
    if as_json:
        print_json(completion_record(model, completion))
    else:
        typer.echo(completion.text)
