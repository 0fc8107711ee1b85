"""Killed at random moments, again and again: the output of the job is that of one that was left in peace.

python bench/bulk_kill.py [--kills 20] [--rows 3000] [--seed 0]
"""

from __future__ import annotations

import argparse
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bulk_rows import write_reviews


def start(folder: Path, output: str) -> subprocess.Popen[str]:
    words = ["--column", "review", "--max-new-tokens", "4", "--temperature", "1", "--seed", "1", "--json"]
    files = [str(folder / "in.jsonl"), str(folder / output)]
    return subprocess.Popen(
        [sys.executable, "-m", "chatglm3", "run", *files, *words], stdout=subprocess.PIPE, text=True
    )


def wait_for_work(process: subprocess.Popen[str]) -> None:
    """Until the model is loaded and the rows are read."""
    assert process.stdout is not None
    process.stdout.readline()


def finish(folder: Path, output: str) -> tuple[float, float]:
    """Run a job to its end; seconds before its work and of it."""
    begin = time.perf_counter()
    process = start(folder, output)
    wait_for_work(process)
    ready = time.perf_counter()
    process.communicate()
    if process.returncode:
        sys.exit(f"the job failed with status {process.returncode}")
    return ready - begin, time.perf_counter() - ready


def kill(folder: Path, wait: float, *, while_starting: bool) -> tuple[int, int]:
    """Start the job and kill it; the windows in its journal, and the bytes of a torn line behind them."""
    process = start(folder, "out.jsonl")
    if not while_starting:
        wait_for_work(process)
    time.sleep(wait)
    process.kill()
    process.communicate()
    journal = folder / "out.jsonl.job" / "results"
    data = journal.read_bytes() if journal.exists() else b""
    return data.count(b"\n"), len(data) - data.rfind(b"\n") - 1


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    table, rng = (
        Table("kill", "while", "after seconds", "windows in the journal", "torn bytes"),
        random.Random(options.seed),
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_reviews(folder / "in.jsonl", options.rows)
        starting, working = finish(folder, "whole.jsonl")
        for number in range(1, options.kills + 1):
            early = rng.random() < 0.2
            wait = rng.uniform(0, starting if early else 1.5 * working / options.kills)  # 0.6 of the work in all
            windows, torn = kill(folder, wait, while_starting=early)
            table.add_row(str(number), "starting" if early else "working", f"{wait:.2f}", str(windows), str(torn))
            if (folder / "out.jsonl").exists():
                sys.exit(f"the job was over after {number} kills; give more --rows")
        finish(folder, "out.jsonl")
        same = digest(folder / "out.jsonl") == digest(folder / "whole.jsonl")
    console = Console(width=100)
    console.print(table)
    verdict = "identical" if same else "NOT identical"
    console.print(f"{options.kills} kills, {options.rows} rows: the output is {verdict} to that of a job in peace")
    sys.exit(not same)


if __name__ == "__main__":
    main()
