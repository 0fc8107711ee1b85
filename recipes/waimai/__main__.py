"""Fine-tunes both bundled models on takeaway reviews, measures before and after, and writes a report:

python -m recipes.waimai waimai_10k.csv --output docs/reports/waimai.md

The file has the columns label (1 or 0) and review. Training runs go to `build/waimai`; stopped and started again, the
command goes on with them. The held-out rows are measured at the end, once. Beside other programs that compute,
OMP_NUM_THREADS=1 is many times as fast: threads that share a core wait for each other.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from time import perf_counter

from chatglm3.errors import ChatGLMError
from chatglm3.train.progress import ProgressBar

from .data import Sizes, read_parts
from .measuring import measure
from .report import Experiment, markdown
from .tuning import GRID, Route, best, tune


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    given = list(sys.argv[1:] if words is None else words)
    arguments = _parser().parse_args(given)
    if not arguments.output.parent.is_dir():
        print(f"recipes.waimai: there is no folder {arguments.output.parent}; make it first", file=sys.stderr)
        return 1
    try:
        text = markdown(_run(arguments, _command(given, arguments.path)))
    except (ChatGLMError, OSError) as error:
        print(f"recipes.waimai: {error}", file=sys.stderr)
        return 1
    arguments.output.write_text(text, encoding="utf-8")
    print(arguments.output)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m recipes.waimai", description=(__doc__ or "").splitlines()[0])
    number = partial(parser.add_argument, type=_positive)
    parser.add_argument("path", type=Path, help="CSV with the columns label (1 or 0) and review")
    parser.add_argument("--output", type=Path, required=True, help="the report, as Markdown")
    parser.add_argument("--work", type=Path, default=Path("build/waimai"), help="folder of the training runs")
    parser.add_argument("--chat-model", default="nano")
    parser.add_argument("--base-model", default="nano-base")
    parser.add_argument("--seed", type=int, default=0, help="of the split")
    number("--train", default=2_000, help="rows to train on")
    number("--validation", default=1_000, help="rows to choose a setting on")
    number("--held-out", default=2_000, help="rows to measure")
    number("--settings", default=len(GRID), help="try the first so many only")
    number("--steps", help="of every training run (default: those of its setting)")
    return parser


def _positive(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word} is not a number from 1")
    return int(word)


def _command(given: Sequence[str], path: Path) -> str:
    """What was typed, without the folder that the file is in."""
    return f"python -m recipes.waimai {shlex.join(path.name if word == str(path) else word for word in given)}"


def _run(arguments: argparse.Namespace, command: str) -> Experiment:
    sizes = Sizes(arguments.train, arguments.validation, arguments.held_out)
    parts = read_parts(arguments.path, sizes, arguments.seed)
    trials = []
    for route in (Route("Chat", arguments.chat_model), Route("Base", arguments.base_model)):
        with ProgressBar() as bar:
            found = tuple(tune(route, parts, GRID[: arguments.settings], arguments.work, arguments.steps, bar))
        trials.append((route, found, best(found)))
    began = perf_counter()
    measured = measure(parts, [(route, chosen) for route, _, chosen in trials], _Teller())
    seconds = perf_counter() - began
    return Experiment(arguments.path.name, command, arguments.seed, parts, tuple(trials), measured, seconds)


class _Teller:
    """A line on standard error when something else begins to be measured."""

    def __init__(self) -> None:
        self._step = ""

    def __call__(self, step: str, done: int, total: int) -> None:
        if step != self._step:
            print(f"{step} ({done:,} of {total:,} rows done)", file=sys.stderr, flush=True)
        self._step = step


if __name__ == "__main__":
    sys.exit(main())
