"""The LoRA step on a CPU against PEFT and transformers in the Hugging Face Trainer: tokens a second and peak memory.

Layers of the real ChatGLM3-6B width with random weights; rows of many lengths, about half of each is learned. Both get
the same weights, rows, batches and threads, and a process of their own in each round; the rounds alternate. Tokens are
those of the rows: padding counts for nobody. The first losses must agree, which shows that both compute the same.

    pip install "chatglm3[train]" transformers
    python bench/train.py                         # two layers, bfloat16
    python bench/train.py --dtype float32 --layers 1 --rounds 1
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import machine
import trainers
from checkpoints import half_checkpoint
from cpu_table import Bar, Report, Row, each

FASTER, SMALLER = Bar("≥", 1.3), Bar("≤", 0.8)
GIB = 2**30
_AGREE = 0.02  # relative difference of the first losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2, help="layers of the real width (28 in the real model)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16", help="of the frozen weights")
    parser.add_argument("--autocast", action="store_true", help="run the Trainer with bf16=True")
    parser.add_argument("--batch-size", type=int, default=4, help="rows of a step")
    parser.add_argument("--lengths", type=int, nargs=2, default=(64, 512), help="shortest and longest row, characters")
    parser.add_argument("--steps", type=int, default=6, help="steps of a round, the first of which is not timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="keep the checkpoints here")
    parser.add_argument("--json", type=Path, help="write everything that was measured")
    options = parser.parse_args()
    if find_spec("peft") is None or find_spec("transformers") is None:
        raise SystemExit('pip install "chatglm3[train]" transformers')
    with tempfile.TemporaryDirectory(dir=options.folder) as output:
        report = measure(options, options.folder or Path(output), Path(output))
    report.print()
    if options.json:
        report.write(options.json)


def measure(options: argparse.Namespace, folder: Path, output: Path) -> Report:
    """All rounds."""
    ours, theirs = _in_process(write_checkpoints, folder, options.layers)
    rows = output / "rows.jsonl"
    write_rows(rows, options.batch_size * options.steps, *options.lengths)
    report = Report(machine.describe(options.threads, machine.isa()))
    contenders = {"ours": trainers.train_ours, "theirs": trainers.train_theirs}
    found: dict[str, list[trainers.Measured]] = {name: [] for name in contenders}
    for number in range(options.rounds):
        job = trainers.Job(
            ours,
            theirs,
            rows,
            output / str(number),
            options.dtype,
            options.batch_size,
            options.steps,
            options.threads,
            options.autocast,
        )
        for name, run in contenders.items():
            machine.undisturbed(lambda: 0.0)  # begins in a quiet moment
            found[name].append(_in_process(run, job))
            print(f"round {number + 1}, {name}: {found[name][-1]}", flush=True)
    _require_agreement(found["ours"][0], found["theirs"][0])
    report.raw |= {name: [asdict(one) for one in results] for name, results in found.items()}
    report.add(*_rows(options, found["ours"], found["theirs"]))
    return report


def write_checkpoints(folder: Path, layers: int) -> tuple[Path, Path]:
    """The same random weights in the official layout and in transformers' own."""
    from chatglm3.model.checkpoint import load_model
    from chatglm3.model.hub import resolve
    from contenders import Transformers

    class Saved(Transformers):
        def save(self, path: Path) -> None:
            self._glm.load_state_dict({n: t.clone() for n, t in self._glm.state_dict().items()}, assign=True)
            self._glm.save_pretrained(path)

    ours, theirs = half_checkpoint(folder, layers), folder / f"transformers-{layers}"
    shutil.copyfile(resolve("nano") / "tokenizer.model", ours / "tokenizer.model")  # any will do for random rows
    if not (theirs / "config.json").exists():
        Saved(load_model(ours, device="cpu", dtype="bfloat16")).save(theirs)
    return ours, theirs


def write_rows(file: Path, count: int, shortest: int, longest: int) -> None:
    """Plain text of random letters, cut into what is given and what is learned."""
    rng = random.Random(0)
    reviews = Path(__file__).parents[1] / "examples/reviews.jsonl"
    letters = sorted(
        {letter for line in reviews.read_text(encoding="utf-8").splitlines() for letter in json.loads(line)["review"]}
    )
    with file.open("w", encoding="utf-8") as out:
        for _ in range(count):
            text = "".join(rng.choices(letters, k=rng.randint(shortest, longest)))
            cut = round(len(text) * rng.uniform(0.3, 0.7))
            out.write(json.dumps({"prompt": text[:cut], "response": text[cut:]}, ensure_ascii=False) + "\n")


def _rows(
    options: argparse.Namespace, ours: list[trainers.Measured], theirs: list[trainers.Measured]
) -> tuple[Row, Row]:
    what = f"{options.layers} layers, {options.dtype}, batches of {options.batch_size}"
    name = f"PEFT {version('peft')}, transformers {version('transformers')}"
    speeds = [each([one.speed for one in results], "tokens/s") for results in (ours, theirs)]
    peaks = [each([one.memory / GIB for one in results], "GiB") for results in (ours, theirs)]
    return Row(f"LoRA step, {what}", *speeds, FASTER, name), Row("peak memory of the process", *peaks, SMALLER, name)


def _require_agreement(ours: trainers.Measured, theirs: trainers.Measured) -> None:
    first, other = ours.losses[0], theirs.losses[0]
    if abs(first - other) > _AGREE * other:
        raise SystemExit(f"the first losses differ, {first:.4f} and {other:.4f}: they do not train the same")


def _in_process(run, *arguments):  # type: ignore[no-untyped-def]
    """What `run` returns in a fresh process, whose peak memory is its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run, *arguments).result()


if __name__ == "__main__":
    main()
