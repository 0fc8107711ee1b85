"""What a job would do, without doing it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from chatglm3.bulk.jobs import Job
from chatglm3.bulk.runner import Source, make_task, prompts_of, read_plan
from chatglm3.bulk.task import Prompt, Task
from chatglm3.prompt import render
from chatglm3.tables.formats import check_name

SHOWN, TIMED = 3, 8


@dataclass(frozen=True)
class Preview:
    """Rows, rows without a prompt, prompts to compute, some prompts as the model sees them, and estimated seconds."""

    rows: int
    bad_rows: int
    prompts: int
    shown: tuple[str, ...]
    seconds: float


def preview(job: Job, source: Source) -> Preview:
    """Show finished prompts, and time a few; nothing is written. Raises what reading the input and the model raises."""
    check_name(job.output)
    plan = read_plan(job)
    with source.load() as glm:
        task = make_task(glm, plan)
        prompts = prompts_of(task, next(plan.windows(1 + TIMED), []), job.seed)
        shown = tuple(render(glm.tokenizer, task.ids(prompt.text)) for prompt in prompts[:SHOWN])
        seconds = plan.prompts * _seconds_each(task, prompts) if prompts else 0.0
    return Preview(plan.rows, plan.bad_rows, plan.prompts, shown, seconds)


def _seconds_each(task: Task, prompts: Sequence[Prompt]) -> float:
    with task.shared([prompt.text for prompt in prompts]):
        task.compute(prompts[:1])  # the first time is slower
        start = time.perf_counter()
        timed = prompts[1:] or prompts
        task.compute(timed)
        return (time.perf_counter() - start) / len(timed)
