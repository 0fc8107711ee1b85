"""What a job would do, without doing it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from chatglm3.bulk.jobs import Job
from chatglm3.bulk.runner import Load, make_task, read_plan
from chatglm3.bulk.task import Task
from chatglm3.prompt import render
from chatglm3.tables.formats import check_name

SHOWN, TIMED = 3, 8


@dataclass(frozen=True)
class Preview:
    """Rows, rows without a prompt, different prompts, some prompts as the model sees them, and estimated seconds."""

    rows: int
    bad_rows: int
    prompts: int
    shown: tuple[str, ...]
    seconds: float


def preview(job: Job, load: Load) -> Preview:
    """Show finished prompts, and time a few; nothing is written. Raises what `run_job` would raise before its work."""
    check_name(job.output)
    plan = read_plan(job)
    with load() as glm:
        task = make_task(glm, plan)
        texts = [task.text(values) for values in next(plan.windows(1 + TIMED), [])]
        shown = tuple(render(glm.tokenizer, task.ids(text)) for text in texts[:SHOWN])
        seconds = plan.prompts * _seconds_each(task, texts, job.seed) if texts else 0.0
    return Preview(plan.rows, plan.bad_rows, plan.prompts, shown, seconds)


def _seconds_each(task: Task, texts: Sequence[str], seed: int) -> float:
    with task.shared(texts):
        task.compute(texts[:1], seed)  # the first time is slower
        start = time.perf_counter()
        timed = texts[1:] or texts
        task.compute(timed, seed)
        return (time.perf_counter() - start) / len(timed)
