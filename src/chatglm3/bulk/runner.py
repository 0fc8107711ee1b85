"""The job itself: plan, compute window after window into the journal, write the output from it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chatglm3
from chatglm3.bulk.answers import Answers
from chatglm3.bulk.identity import Identity
from chatglm3.bulk.jobs import ClassifyJob, Job, RunJob
from chatglm3.bulk.journal import Journal
from chatglm3.bulk.labels import Labels
from chatglm3.bulk.plan import BAD, Asked, Plan, make_plan
from chatglm3.bulk.progress import Meter, Progress, Summary
from chatglm3.bulk.task import Prompt, Task
from chatglm3.errors import DataError, JobError
from chatglm3.tables import BadRow, Kind, Row, open_table, write_rows
from chatglm3.tables.formats import check_name

if TYPE_CHECKING:
    from chatglm3.chat import ChatGLM


@dataclass(frozen=True)
class Source:
    """What a model is called, and how to get it."""

    name: str
    load: Callable[[], AbstractContextManager[ChatGLM]]


def run_job(job: Job, source: Source, progress: Callable[[Progress], None] = lambda _: None) -> Summary:
    """Do the job, or go on with it; the model is loaded when the input was read. Raises ChatGLMError or OSError."""
    check_name(job.output)
    with Journal(job.output) as journal:
        stamp = _stamp(job.input)
        plan = read_plan(job)
        with source.load() as glm:
            task = make_task(glm, plan)
            with _kept(journal):
                values = {"input": _sha256(job.input), **_values(glm, job, task)}
                journal.begin(Identity.of(values, names={"model": source.name}))
                meter = Meter(plan, progress)
                _compute(plan, task, journal, meter)
        if _stamp(job.input) != stamp:
            raise JobError(f"{job.input} was changed while the job ran; restore it, or remove {journal.folder}")
        with _kept(journal):
            journal.finish()
            write_rows(job.output, _output(plan, task, journal, meter), _kinds(plan, task), plan.table)
        journal.remove()
        return meter.summary()


def read_plan(job: Job) -> Plan:
    """The first pass over the input."""
    return make_plan(job, open_table(job.input, encoding=job.encoding))


def make_task(glm: ChatGLM, plan: Plan) -> Task:
    """The work on a model; `JobError` if no row can fit, or if a new column has the name of one of the input's."""
    task: Task
    if isinstance(plan.job, RunJob):
        task = Answers(glm, plan.job)
    else:
        assert isinstance(plan.job, ClassifyJob)
        task = Labels(glm, plan.job)
    names = [plan.job.output_prefix + name for name in task.kinds]
    taken = [name for name in names if name in plan.kinds or names.count(name) > 1]
    if taken:
        raise JobError(f"a new column would be another {taken[0]!r}; choose --output-prefix, for example model_")
    task.require_room()
    return task


def prompts_of(task: Task, window: Sequence[Asked], seed: int) -> list[Prompt]:
    """The finished prompts of a window."""
    return [Prompt(task.text(asked.values), _row_seed(seed, asked.row)) for asked in window]


def _compute(plan: Plan, task: Task, journal: Journal, meter: Meter) -> None:
    with ExitStack() as stack:
        for number, window in enumerate(plan.windows(task.window)):
            prompts = prompts_of(task, window, plan.job.seed)
            if number == 0:
                stack.enter_context(task.shared([prompt.text for prompt in prompts]))
            if number < journal.windows:
                meter.resume(journal.read(number))
                continue
            results = task.compute(prompts)
            journal.append([result.values for result in results])
            meter.add(results)


def _output(plan: Plan, task: Task, journal: Journal, meter: Meter) -> Iterator[Row]:
    """The rows of the output."""
    for place, (number, row) in enumerate(plan.numbered_rows(), 1):
        new = _bad(plan, task, row) if number == BAD else journal.result(number, task.window)
        meter.see(place, new)
        values = row.values if isinstance(row, BadRow) else row
        yield values | {plan.job.output_prefix + name: value for name, value in new.items()}


def _bad(plan: Plan, task: Task, row: Row | BadRow) -> Row:
    """The new columns of a row that has no prompt."""
    try:
        plan.job.template.values(row)
    except DataError as error:
        return task.failed(error).values
    raise JobError(f"{plan.job.input} was changed while the job ran; restore it and run the same command again")


def _kinds(plan: Plan, task: Task) -> dict[str, Kind]:
    return plan.kinds | {plan.job.output_prefix + name: kind for name, kind in task.kinds.items()}


def _values(glm: ChatGLM, job: Job, task: Task) -> dict[str, Any]:
    """All that the output depends on besides the input; a job that is begun with one goes on with no other."""
    model = {"model": glm.engine.fingerprint(), "dtype": str(glm.model.dtype), "device": str(glm.model.device)}
    sizes = {"max_context": glm.engine.max_context, "window": task.window, "version": chatglm3.__version__}
    return {"job": type(job).__name__, **job.identity(), **model, **sizes}


def _row_seed(seed: int, row: int) -> int:
    """Each row has random numbers of its own, whichever other rows are asked with it."""
    digest = hashlib.blake2b(f"{seed} {row}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(1 << 20):
            digest.update(data)
    return f"{path.stat().st_size} bytes, sha256 {digest.hexdigest()}"


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@contextmanager
def _kept(journal: Journal) -> Iterator[None]:
    """Say with a failure of the disk that nothing is lost."""
    try:
        yield
    except OSError as error:
        where = error.filename or journal.folder
        raise JobError(
            f"{where}: {error.strerror or error}; what is done is kept in {journal.folder}: mend this and run it again"
        ) from None
