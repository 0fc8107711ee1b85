"""`chatglm3 train init`: a commented config from a few questions."""

from __future__ import annotations

import re
from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer
import typer.core

from chatglm3.errors import TrainingError

_METHODS = ("lora", "ptuning", "full")
_RATES = {"lora": "1.0e-4", "ptuning": "2.0e-2", "full": "2.0e-5"}

_TEMPLATE = """\
# A training run: {run} [key=value ...], for example batch_size=8 or lora.rank=16.
# Look at the data first: {check}

model: {model}             # "nano", "nano-base", a folder, a Hugging Face id or modelscope:ID
output: {output}           # gets checkpoints, metrics.jsonl, loss.svg and what was trained

data:
  train: {train}           # JSON, JSONL, CSV, TSV or Parquet
  validation: {validation}  # rows that are not trained on; null: none
  max_length: 1024         # most tokens of a row; longer ones lose their beginning, never their answer
  # kind: chat             # chat or base; by default what the rows look like
  # test: test.jsonl       # measured once, at the end

method: {method}           # lora, ptuning (P-Tuning v2) or full
{settings}
epochs: 3                  # or steps: 1000
batch_size: 4              # rows of one forward pass on one device
accumulation: 1            # forward passes in a step: more are a larger batch in the same memory
learning_rate: {rate}
schedule: cosine           # cosine, linear or constant, after
warmup_steps: 10
dtype: auto                # float32, bfloat16 or float16 (GPU only); what is trained is float32
gradient_checkpointing: false  # true: a third slower, with a fraction of the memory for activations
# quantize: 4              # LoRA and P-Tuning: keep the frozen weights in 4 or 8 bits
seed: 0

log_every: 10              # steps
save_every: 500            # steps between two checkpoints; there is one at the end in any case
keep: 2                    # newest checkpoints that stay, besides the best one; null: all
tensorboard: false

evaluation:
  every: 500               # steps between two measurements of the validation rows
  # patience: 3            # stop after so many measurements without a better loss
  generate: false          # true: also generate answers and compare them with those of the rows
"""
_SETTINGS = {
    "lora": """\
lora:
  targets: [query_key_value]  # also dense, dense_h_to_4h, dense_4h_to_h
  rank: 8
  alpha: 32
  dropout: 0.1
""",
    "ptuning": """\
ptuning:
  length: 128              # learned keys and values before every row
  projection: false        # true: they are made by a small network
""",
    "full": "",
}


class Questions(typer.core.TyperCommand):
    """A command that asks; Ctrl-C and Ctrl-D at a question end the line."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As every command does it."""
        try:
            return super().parse_args(ctx, args)
        except typer.Abort:
            typer.echo()
            raise


def _refuse_existing(file: Path) -> Path:
    if file.exists():
        raise TrainingError(f"{file} exists; give another name, or remove it first")
    if not file.parent.is_dir():
        raise TrainingError(f"{file.parent} is not a folder; make it first")
    return file


def _check_method(method: str) -> str:
    if method not in _METHODS:
        raise typer.BadParameter(f"use {', '.join(_METHODS)}, not {method}")
    return method


def init(
    file: Annotated[
        Path,
        typer.Argument(help="The config to write; it must not exist.", callback=_refuse_existing, is_eager=True),
    ] = Path("train.yaml"),
    *,
    model: Annotated[str, typer.Option(prompt="Model to fine-tune", help="Its name or folder.")] = "nano",
    train: Annotated[str, typer.Option(prompt="File of training rows", help="Rows to learn.")] = "train.jsonl",
    validation: Annotated[
        str, typer.Option(prompt="File of validation rows (none: -)", help="Rows to measure; -: none.")
    ] = "-",
    method: Annotated[
        str, typer.Option(prompt="Method (lora, ptuning, full)", callback=_check_method, help="How to train.")
    ] = "lora",
    output: Annotated[str, typer.Option(prompt="Folder for the results", help="Checkpoints go there.")] = "output",
) -> None:
    """Write a commented config; asks for what is not given as an option."""
    check = f"chatglm3 train check {quote(train)} --model {quote(model)}"
    run = f"chatglm3 train {quote(str(file))}"
    text = _TEMPLATE.format(
        run=run,
        check=check,
        model=_quoted(model),
        train=_quoted(train),
        validation="null" if validation == "-" else _quoted(validation),
        method=method,
        output=_quoted(output),
        settings=_SETTINGS[method],
        rate=_RATES[method],
    )
    file.write_text(_aligned(text), encoding="utf-8")
    for name in (train, *(() if validation == "-" else (validation,))):
        if not Path(name).expanduser().is_file():
            typer.echo(f"{name} is not there yet", err=True)
    if not _may_exist(model):
        typer.echo(f"{model} is no folder here, and not the name of a model", err=True)
    typer.echo(f"{file}: look at it, then: {check}; {run}")


def _may_exist(model: str) -> bool:
    """Whether a model is bundled, a folder, or called as those of the hubs are; nobody is asked."""
    from chatglm3.model.hub import BUNDLED

    is_here = model in BUNDLED or Path(model).expanduser().is_dir()
    return is_here or re.fullmatch(r"(modelscope:)?\w[\w.-]*/[\w.-]+", model) is not None


def _quoted(text: str) -> str:
    """As YAML has it."""
    import yaml  # type: ignore[import-untyped]

    return str(yaml.safe_dump(text, allow_unicode=True, default_style=None, width=10**6)).removesuffix("...\n").strip()


def _aligned(text: str) -> str:
    """The comments behind values under each other."""
    lines = []
    for line in text.splitlines():
        value, mark, comment = line.rpartition("  # ")
        is_behind = mark and value.strip()
        lines.append(f"{value.rstrip():<32}  # {comment.strip()}" if is_behind else line.rstrip())
    return "\n".join(lines) + "\n"
