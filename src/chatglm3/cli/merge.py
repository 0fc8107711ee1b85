"""`chatglm3 merge`: write a copy of a model with a LoRA adapter folded into its weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from chatglm3.cli.options import Json, ModelArgument, check_bits
from chatglm3.cli.output import print_json
from chatglm3.cli.quantize import byte_progress, original

_DTYPES = ("auto", "float32", "bfloat16", "float16")
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def _check_dtype(dtype: str) -> str:
    if dtype not in _DTYPES:
        raise typer.BadParameter(f"use {', '.join(_DTYPES)}, not {dtype}")
    return dtype


def _check_size(text: str) -> str:
    _bytes(text)
    return text


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) *([A-Za-z]*)", text.strip())
    size = int(float(match[1]) * _UNITS.get(match[2].upper(), 0)) if match else 0
    if size < 1:
        raise typer.BadParameter(f"a size is a number with KB, MB or GB, as 2GB, not {text!r}")
    return size


def command(
    model: ModelArgument,
    adapter: Annotated[Path, typer.Argument(help="Folder of a LoRA adapter.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; it must not exist or be empty.")],
    *,
    dtype: Annotated[
        str, typer.Option(callback=_check_dtype, help="float32, bfloat16 or float16; auto: as the model is stored.")
    ] = "auto",
    max_shard_size: Annotated[
        str, typer.Option(callback=_check_size, help="Largest file of weights, as 2GB or 500MB.")
    ] = "2GB",
    quantize: Annotated[
        int | None, typer.Option(callback=check_bits, help="Then quantise the merged weights to 8 or 4 bits.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a copy of a model with a LoRA adapter folded into its weights.

    MODEL is the full-precision model that the adapter was trained for, or trained on a quantised copy of. Needs little
    memory. OUT appears when it is complete.
    """
    from chatglm3.cli.memory import format_bytes
    from chatglm3.model.merging import merge_checkpoint
    from chatglm3.model.quantization import Quantization

    folder = original(model)
    with byte_progress() as bar:
        task = bar.add_task("merging", total=None)
        written = merge_checkpoint(
            folder,
            adapter,
            out,
            dtype=dtype,
            max_shard_bytes=_bytes(max_shard_size),
            quantization=None if quantize is None else Quantization(quantize),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if as_json:
        sizes = {"layers": written.layers, "bytes": written.nbytes, "bits": quantize}
        print_json({"model": model, "adapter": str(adapter), "folder": str(out), **sizes})
    else:
        typer.echo(f"{out}: {format_bytes(written.nbytes)}, {written.layers} layers changed")
