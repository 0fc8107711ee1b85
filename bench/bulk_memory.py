"""20,000 rows with the bundled model: resident memory and speed from the beginning of the job to its end.

Memory is to stay within 2 % from row 1,000 to the last one, and the last tenth of the rows is to go at the speed of the
second one, within 5 %.

    python bench/bulk_memory.py [--rows 20000] [--job classify|run]
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

import chatglm3
from bulk_rows import write_reviews
from chatglm3 import bulk
from chatglm3.engine.core import Counters

SYSTEM = "判断评论的情感，只回答“正面”或“负面”。"


def resident_mib() -> float:
    """Resident memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


class Samples:
    """Row, seconds and resident memory at each step of a job."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, float, float]] = []
        self.counters = Counters()

    def __call__(self, progress: bulk.Progress) -> None:
        self.rows.append((progress.rows, time.perf_counter(), resident_mib()))

    def at(self, row: int) -> tuple[int, float, float]:
        return min(self.rows, key=lambda sample: abs(sample[0] - row))

    def memory(self, first: int, last: int) -> list[float]:
        """Of the windows that end between these rows."""
        return [memory for row, _, memory in self.rows if first <= row <= last]


def run(job: str, source: Path, samples: Samples) -> None:
    output = source.with_name("out.jsonl")
    with chatglm3.load("nano") as glm:
        if job == "classify":
            words = {"labels": ["正面", "负面"], "system": SYSTEM}
            done = bulk.classify(source, output, model=glm, column="review", progress=samples, **words)
        else:
            words = {"system": SYSTEM, "max_new_tokens": 4}
            done = bulk.run(source, output, model=glm, column="review", progress=samples, **words)
        samples(done.progress)  # the output is written now
        samples.counters = glm.engine.counters


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--job", choices=("classify", "run"), default="classify")
    options = parser.parse_args()
    if options.rows < 10_000:
        parser.error("a tenth of the rows must be several windows of 256; give 10000 at least")

    samples = Samples()
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "in.jsonl"
        write_reviews(source, options.rows)
        run(options.job, source, samples)
    table, speeds = Table("tenth", "rows/s", "resident MiB at its end"), []
    for tenth in range(10):
        before, after = samples.at(options.rows * tenth // 10), samples.at(options.rows * (tenth + 1) // 10)
        speeds.append((after[0] - before[0]) / (after[1] - before[1]))
        table.add_row(str(tenth + 1), f"{speeds[-1]:.0f}", f"{after[2]:.1f}")
    early, late = samples.memory(1000, 3000), samples.memory(options.rows - 2000, options.rows)
    growth, drift = statistics.median(late) / statistics.median(early) - 1, speeds[-1] / speeds[1] - 1
    swing = max(early + late) - min(early + late)
    console = Console(width=100)
    console.print(table)
    console.print(f"{options.job}, {options.rows} rows: memory {growth:+.2%} from row 1,000 to the end (2 % allowed),")
    console.print(f"medians of 2,000 rows each; within them it swings by {swing:.1f} MiB")
    seconds = samples.rows[-1][1] - samples.rows[0][1]
    share = (samples.counters.seconds - samples.counters.network_seconds) / seconds
    console.print(f"the engine's own time, outside the network: {share:.1%} of the total (10 % allowed)")
    console.print(f"rows/s of the last tenth against the second: {drift:+.1%} (5 % allowed)")
    sys.exit(growth > 0.02 or drift < -0.05 or share > 0.1)


if __name__ == "__main__":
    main()
