"""A disk that is full while a job writes. A limit on the size of files stands for the disk."""

from __future__ import annotations

import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import chatglm3
from bulk.reviews import read, reviews, write
from chatglm3 import bulk
from chatglm3.errors import JobError

ROWS = 200  # four windows


@contextmanager
def full_at(size: int) -> Iterator[None]:
    """No file of this process can grow beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def words(tmp_path: Path, nano: chatglm3.ChatGLM) -> dict[str, Any]:
    rows = [{**row, "long": "长" * 2000} for row in reviews(ROWS)]
    source = write(tmp_path / "in.jsonl", rows)
    return {"input": source, "output": tmp_path / "out.jsonl", "model": nano, "column": "review", "max_new_tokens": 2}


def test_the_journal_is_as_it_was_before_the_window_that_did_not_fit(words: dict[str, Any]) -> None:
    with full_at(17_000), pytest.raises(JobError, match=r"File too large; what is done is kept in .*out\.jsonl\.job"):
        bulk.run(**words)
    results = words["output"].with_name("out.jsonl.job") / "results"
    lines = results.read_bytes().splitlines(keepends=True)
    assert 1 <= len(lines) < 4 and lines[-1].endswith(b"\n")
    summary = bulk.run(**words)
    assert summary.progress.resumed == 64 * len(lines)
    assert [row["id"] for row in read(words["output"])] == list(range(ROWS))


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv.gz", "out.parquet"])
def test_an_output_that_does_not_fit_does_not_appear(words: dict[str, Any], name: str) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    words["input"] = write(words["input"], [{**row, "long": _noise(i)} for i, row in enumerate(reviews(ROWS))])
    words["output"] = words["output"].with_name(name)
    with full_at(200_000), pytest.raises(JobError, match="File too large"):
        bulk.run(**words)
    assert sorted(path.name for path in words["input"].parent.iterdir()) == ["in.jsonl", f"{name}.job"]
    assert bulk.run(**words).progress.resumed == ROWS
    assert words["output"].stat().st_size > 200_000


def _noise(seed: int) -> str:
    """4,000 letters that compress badly."""
    return random.Random(seed).randbytes(2000).hex()
