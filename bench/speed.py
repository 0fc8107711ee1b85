"""The rounds of `cpu.py`: decode, prefill and batches, one precision after the other, the contenders in turn."""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from chatglm3.model.checkpoint import load_model
from checkpoints import gguf_file, half_checkpoint, quantized_checkpoint
from contenders import Contender, LlamaCpp, Ours, PlainTorch, Transformers, installed
from cpu_table import Bar, Report, Row, Spread, each
from machine import ReadBandwidth, undisturbed

PROMPT, ANSWER, PREFILL, ROWS = 32, 32, 512, 16
_PATIENCE = 300  # seconds a contender may take for one measure; the rounds that are left do without it
_BARS = {  # what ours must reach
    ("int4", "decode"): Bar("≥", 1.35),
    ("int4", "prefill"): Bar("≥", 1.4),
    ("int8", "decode"): Bar("≥", 1.15),
    ("bf16", "decode"): Bar("≥", 1.6),
    ("bf16", "prefill"): Bar("≥", 6.0),
}
_BANDWIDTH, _BATCH = Bar("≥", 0.80), Bar("≥", 2.2)

Rounds = dict[str, list[float]]
"""What each contender did in each round, in tokens (or bytes) a second."""


def measure(report: Report, options: argparse.Namespace, folder: Path) -> None:
    """Add the rows of every precision; one precision is in memory at a time."""
    torch.set_num_threads(options.threads)
    bandwidths: list[float] = []
    for precision, gather in (("int4", _int4), ("int8", _int8), ("bf16", _bf16)):
        contenders = gather(options, folder) if precision in options.precisions else []
        if not contenders:
            continue
        report.raw[f"{precision} scores"] = _correlations(contenders)
        if "decode" in options.only or ("batch" in options.only and precision == "int4"):
            bandwidths += _add_decode(report, precision, contenders, options)
        if "prefill" in options.only:
            rounds = _alternate({c.name: partial(_prefill, c) for c in contenders}, options.rounds)
            report.raw[f"{precision} prefill, tokens/s"] = rounds
            report.add(*_compare(precision, "prefill", rounds))
        for contender in contenders:
            contender.close()
    if bandwidths:
        report.header += f", reads {statistics.median(bandwidths) / 1e9:.1f} GB/s"


def _int4(options: argparse.Namespace, folder: Path) -> list[Contender]:
    return _quantized(options, folder, 4, "Q4_0")


def _int8(options: argparse.Namespace, folder: Path) -> list[Contender]:
    return _quantized(options, folder, 8, "Q8_0")


def _quantized(options: argparse.Namespace, folder: Path, bits: int, kind: str) -> list[Contender]:
    found: list[Contender] = []
    if "ours" in options.contenders:
        path = quantized_checkpoint(folder, options.layers, bits)
        found.append(Ours(f"int{bits}", load_model(path, device="cpu")))
    if "llama" in options.contenders and installed("llama"):
        found.append(LlamaCpp(gguf_file(folder, options.layers, kind), kind, options.threads))
    return found


def _bf16(options: argparse.Namespace, folder: Path) -> list[Contender]:
    chosen = [name for name in ("ours", "transformers", "torch") if name in options.contenders]
    if not chosen:
        return []
    model = load_model(half_checkpoint(folder, options.layers), device="cpu", dtype="bfloat16")
    found: list[Contender] = [Ours("bf16", model)] if "ours" in chosen else []
    if "transformers" in chosen and installed("transformers"):
        found.append(Transformers(model))
    if "torch" in chosen:
        found.append(PlainTorch(PlainTorch.NAME, model))
    return found


def _add_decode(
    report: Report, precision: str, contenders: Sequence[Contender], options: argparse.Namespace
) -> list[float]:
    """Adds the rows of decoding; returns the bandwidths measured in the same rounds."""
    bandwidth = ReadBandwidth(options.threads)
    actions = {"bandwidth": bandwidth.measure, **{c.name: partial(_decode, c) for c in contenders}}
    ours = contenders[0] if type(contenders[0]) is Ours else None
    batch = f"{ROWS} rows"
    if ours and precision == "int4" and "batch" in options.only:
        actions[batch] = partial(_decode_rows, ours)
    rounds = _alternate(actions, options.rounds)
    bandwidth.close()
    report.raw[f"{precision} decode, tokens/s (bandwidth: bytes/s)"] = rounds
    report.raw[f"{precision} bytes a token"] = {c.name: c.weight_bytes for c in contenders}
    if "decode" in options.only:
        report.add(*_compare(precision, "decode", {c.name: rounds[c.name] for c in contenders}))
    for contender in contenders if "decode" in options.only else ():
        read = [tokens * contender.weight_bytes / 1e9 for tokens in rounds[contender.name]]
        measured = each([b / 1e9 for b in rounds["bandwidth"]], "GB/s")
        bar = _BANDWIDTH if contender is ours else None
        report.add(Row(f"{contender.name} decode, weights read", each(read, "GB/s"), measured, bar, "bandwidth"))
    if batch in rounds and ours:
        one_row = each(rounds[ours.name], "tokens/s")
        report.add(Row(f"{ours.name}, {batch} together", each(rounds[batch], "tokens/s"), one_row, _BATCH, "1 row"))
    return rounds["bandwidth"]


def _compare(precision: str, what: str, rounds: Rounds) -> Iterable[Row]:
    """Ours, which comes first, over each of the others; the bar is about the first of them."""
    spreads: list[tuple[str, Spread]] = [(name, each(values, "tokens/s")) for name, values in rounds.items()]
    (name, ours), others = spreads[0], spreads[1:]
    if not others or name != precision:
        return [Row(f"{name} {what}", spread) for name, spread in spreads]
    bar = _BARS.get((precision, what))
    return [
        Row(f"{name} {what}", ours, spread, bar if other == others[0][0] and other != PlainTorch.NAME else None, other)
        for other, spread in others
    ]


def _alternate(actions: dict[str, Callable[[], float]], rounds: int) -> Rounds:
    results: Rounds = defaultdict(list)
    spent: dict[str, float] = defaultdict(float)
    for _ in range(rounds):
        for name, action in actions.items():
            if spent[name] > _PATIENCE:
                continue
            start = time.perf_counter()
            results[name].append(undisturbed(action))
            spent[name] += time.perf_counter() - start
    return dict(results)


def _decode(contender: Contender) -> float:
    return 1 / statistics.median(contender.decode(_tokens(PROMPT), ANSWER))


def _decode_rows(ours: Ours) -> float:
    prompts = [_tokens(PROMPT, seed) for seed in range(ROWS)]
    return ROWS / statistics.median(ours.decode_rows(prompts, ANSWER))


def _prefill(contender: Contender) -> float:
    contender.prefill(_tokens(PROMPT))  # wakes its threads
    return PREFILL / contender.prefill(_tokens(PREFILL))


def _correlations(contenders: Sequence[Contender]) -> dict[str, float]:
    """Of everybody's scores with the first one's: all compute the same network."""
    scores = {c.name: c.logits(_tokens(PROMPT)) for c in contenders}
    first = next(iter(scores.values()))
    return {name: float(np.corrcoef(first, theirs)[0, 1]) for name, theirs in scores.items()}


def _tokens(count: int, seed: int = 0) -> list[int]:
    ids: list[int] = np.random.default_rng(seed).integers(259, 64_789, count).tolist()
    return ids
