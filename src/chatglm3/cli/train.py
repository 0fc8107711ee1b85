"""`chatglm3 train`: fine-tune a model as a YAML file says; `train check` and `train init` come before that."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from chatglm3.cli.train_check import check
from chatglm3.cli.train_init import Questions, init
from chatglm3.errors import TrainingError

if TYPE_CHECKING:
    from chatglm3.train.config import TrainConfig
    from chatglm3.train.loop import TrainResult
    from chatglm3.train.progress import Reporter


class _DefaultsToRun(typer.core.TyperGroup):
    """`train CONFIG` is `train run CONFIG`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] not in ctx.help_option_names):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_DefaultsToRun)


@app.callback()
def _train() -> None:
    """Fine-tune a model: train CONFIG.yaml [key=value ...]; first train init, train check."""


@app.command("run")
def run(
    config: Annotated[Path, typer.Argument(help="A YAML file, as `train init` writes it; or one of the official kit.")],
    words: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="What to change in it, as in lora.rank=16.")
    ] = None,
    *,
    resume: Annotated[
        str | None, typer.Option(help="Go on from a checkpoint: latest, its step, or its folder.")
    ] = None,
) -> None:
    """Fine-tune a model as CONFIG says; the word run may be left out.

    Several processes: accelerate launch -m chatglm3 train CONFIG. Stopped or killed, a run goes on with --resume.
    """
    for word in words or ():
        if "=" not in word.lstrip("="):
            raise typer.BadParameter(f"{word!r} is not key=value, as in lora.rank=16")
    _require_libraries()

    from chatglm3.train.config import read_config

    settings, ignored = read_config(config, words or ())
    if not _is_main():
        from chatglm3.train.progress import Silent

        _train_with(settings, resume, Silent())
        return
    if ignored:
        typer.echo(f"{config}: without meaning here: {', '.join(ignored)}", err=True)
    from chatglm3.train.progress import ProgressBar

    try:
        with ProgressBar() as bar:
            result = _train_with(settings, resume, bar)
    except KeyboardInterrupt:
        from chatglm3.train.checkpoints import way_on

        typer.echo(f"stopped; {way_on(settings.output)}", err=True)
        raise
    _print(settings, result)


app.command("check")(check)
app.command("init", cls=Questions)(init)


def _train_with(settings: TrainConfig, resume: str | None, reporter: Reporter) -> TrainResult:
    from chatglm3.train.loop import train

    return train(settings, resume=resume, reporter=reporter)


def _print(settings: TrainConfig, result: TrainResult) -> None:
    losses = [] if result.loss is None else [f"loss {result.loss:.4f}"]
    if result.validation_loss is not None:
        losses.append(f"best validation loss {result.validation_loss:.4f} after step {result.best_step:,}")
    ending = "stopped early" if result.stopped_early else "done"
    typer.echo(f"{ending} after {result.steps:,} steps: {', '.join(losses) or 'nothing was left to do'}")
    folder = quote(str(result.folder))
    use = f"--model {folder}" if settings.method == "full" else f"--model {quote(settings.model)} --adapter {folder}"
    typer.echo(f"chatglm3 {'chat' if result.kind == 'chat' else 'complete'} {use}")


def _is_main() -> bool:
    """Whether this is the process that speaks, of those that accelerate launched."""
    return os.environ.get("RANK", "0") == "0"


def _require_libraries() -> None:
    missing = [name for name in ("accelerate", "pydantic") if find_spec(name) is None]
    if missing:
        raise TrainingError(f"training needs {' and '.join(missing)}: pip install 'chatglm3[train]'")
