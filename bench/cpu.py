"""ChatGLM3 on a CPU: this project at int4, int8 and bfloat16 beside llama.cpp, transformers and plain torch.

Random weights of the real width, the same for everybody. The contenders take turns, round by round in one process, so
that the machine's noise meets all alike, and the medians count. `--isa avx2`, the default, holds everybody to AVX2.

    python bench/cpu.py                                   # 7 layers: 21 GB of disk, half an hour
    python bench/cpu.py --only decode,prefill --contenders ours,llama --folder /big/disk
    python bench/cpu.py --layers 28 --isa native --json numbers.json

A contender that is not installed is left out (pip install llama-cpp-python gguf transformers). Checkpoints are written
to a temporary folder, or kept in `--folder` for the next run (28 layers: 45 GB).
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

MEASURES = ("decode", "prefill", "batch", "error", "load", "accuracy")
PRECISIONS = ("int4", "int8", "bf16")
CONTENDERS = ("ours", "llama", "transformers", "torch")
AVX2_ONLY = {  # read once, when the libraries load
    "CHATGLM3_KERNELS": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=7, help="layers of the real width (28 in the real model)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", choices=("avx2", "native"), default="avx2", help="instructions everybody may use")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(MEASURES), help="some of: %(default)s")
    parser.add_argument("--precisions", default=",".join(PRECISIONS), help="some of: %(default)s")
    parser.add_argument("--contenders", default=",".join(CONTENDERS), help="some of: %(default)s")
    parser.add_argument("--folder", type=Path, help="where checkpoints are kept; a temporary folder if not given")
    parser.add_argument("--json", type=Path, help="write every number measured to this file")
    options = parser.parse_args()
    for name, allowed in (("only", MEASURES), ("precisions", PRECISIONS), ("contenders", CONTENDERS)):
        chosen = getattr(options, name).split(",")
        if not set(chosen) <= set(allowed):
            parser.error(f"--{name}: choose among {','.join(allowed)}, separated by commas")
        setattr(options, name, chosen)
    return options


def run(options: argparse.Namespace, folder: Path) -> None:
    import quality_rows  # imports torch, which reads the environment
    import speed
    from cpu_table import Report
    from machine import describe, isa

    report = Report(describe(options.threads, isa()))
    if {"decode", "prefill", "batch"} & set(options.only):
        speed.measure(report, options, folder)
    if "error" in options.only:
        quality_rows.add_errors(report)
    if "accuracy" in options.only:
        quality_rows.add_accuracy(report)
    if "load" in options.only:
        quality_rows.add_load(report, options.threads, folder)
    report.print()
    if options.json:
        report.write(options.json)


def main() -> None:
    options = parse()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    if options.isa == "avx2":
        os.environ.update(AVX2_ONLY)
    if options.folder:
        options.folder.mkdir(parents=True, exist_ok=True)
        run(options, options.folder)
    else:
        with tempfile.TemporaryDirectory() as folder:
            run(options, Path(folder))


if __name__ == "__main__":
    main()
