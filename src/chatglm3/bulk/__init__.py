"""Jobs over files of any length: every row is asked the same, and the output is the input with the answers beside it.

    from chatglm3 import bulk

    bulk.run("reviews.jsonl", "answers.jsonl", model="nano", prompt="这条评论说的是什么？{review}")
    bulk.classify("reviews.csv", "labels.csv", model="nano", column="review", labels=["正面", "负面"])

A job that was stopped, by whatever, goes on when it is run again, and its output is the same to the byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from typing_extensions import Unpack

from chatglm3.bulk.jobs import ClassifyJob, Job, RunJob
from chatglm3.bulk.preview import Preview, preview
from chatglm3.bulk.progress import Progress, Summary
from chatglm3.bulk.runner import Source, run_job
from chatglm3.engine.params import SamplingOptions, SamplingParams
from chatglm3.errors import JobError
from chatglm3.loading import load
from chatglm3.messages import Message, as_history

if TYPE_CHECKING:
    from chatglm3.chat import ChatGLM

__all__ = [
    "ClassifyJob",
    "Job",
    "Preview",
    "Progress",
    "RunJob",
    "Source",
    "Summary",
    "classify",
    "preview",
    "run",
    "run_job",
]


def run(
    input: str | Path,
    output: str | Path,
    *,
    model: ChatGLM | str | Path = "nano",
    prompt: str | None = None,
    column: str | None = None,
    system: str | None = None,
    history: Iterable[Message | Mapping[str, Any]] = (),
    choices: Iterable[str] | None = None,
    json_schema: object = None,
    truncate: bool = False,
    limit: int | None = None,
    sample: int | None = None,
    encoding: str | None = None,
    output_prefix: str = "",
    progress: Callable[[Progress], None] = lambda _: None,
    **sampling: Unpack[SamplingOptions],
) -> Summary:
    """Let the model answer (a Base model: continue) the prompt of every row of `input`, and write `output`.

    `prompt` has {column} where a row's value goes; `column` alone is the prompt that is that value. `sampling` are
    fields of `SamplingParams`, at temperature 0 and with seed 0 if not given. `progress` is told of every window.
    Raises `JobError` or `DataError` before any work, and what `load` and `chat_batch` raise; a bad row raises nothing.
    """
    options = {"temperature": 0.0, **sampling}
    seed = options.pop("seed", None) or 0
    job = RunJob(
        input=Path(input),
        output=Path(output),
        prompt=prompt,
        column=column,
        system=system,
        history=as_history(history),
        choices=None if choices is None else tuple(choices),
        json_schema=json_schema,
        truncate=truncate,
        limit=limit,
        sample=sample,
        seed=cast(int, seed),
        encoding=encoding,
        output_prefix=output_prefix,
        sampling=SamplingParams.of(options),
    )
    return run_job(job, _source(model), progress)


def classify(
    input: str | Path,
    output: str | Path,
    *,
    labels: Iterable[str],
    model: ChatGLM | str | Path = "nano",
    prompt: str | None = None,
    column: str | None = None,
    system: str | None = None,
    history: Iterable[Message | Mapping[str, Any]] = (),
    examples: Iterable[tuple[str, str]] = (),
    calibrate: bool = False,
    truncate: bool = False,
    limit: int | None = None,
    sample: int | None = None,
    seed: int = 0,
    encoding: str | None = None,
    output_prefix: str = "",
    progress: Callable[[Progress], None] = lambda _: None,
) -> Summary:
    """Give every row of `input` the most probable of `labels` and the probability of each, and write `output`.

    `examples` are pairs of a finished prompt and its label; `seed` is that of `sample`; the rest is as in `run` and
    `ChatGLM.classify`.
    """
    if isinstance(labels, str):
        raise JobError(f"labels must be a list of texts, not {labels!r}")
    job = ClassifyJob(
        input=Path(input),
        output=Path(output),
        labels=tuple(labels),
        prompt=prompt,
        column=column,
        system=system,
        history=as_history(history),
        examples=tuple((text, label) for text, label in examples),
        calibrate=calibrate,
        truncate=truncate,
        limit=limit,
        sample=sample,
        seed=seed,
        encoding=encoding,
        output_prefix=output_prefix,
    )
    return run_job(job, _source(model), progress)


def _source(model: ChatGLM | str | Path) -> Source:
    """A model that is given stays open; one that is named is loaded when it is needed, and closed."""
    if isinstance(model, (str, Path)):
        return Source(str(model), lambda: load(model))
    return Source("a loaded model", lambda: nullcontext(model))
