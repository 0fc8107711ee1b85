"""Real processes: killed, interrupted, and two at once."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bulk.reviews import reviews, write

ROWS = 512  # eight windows


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    source = write(tmp_path / "in.jsonl", reviews(ROWS))
    sampling = ["--max-new-tokens", "3", "--temperature", "1", "--seed", "5"]
    words = ["run", str(source), str(tmp_path / "out.jsonl"), "--column", "review", "--json", *sampling]
    return [sys.executable, "-m", "chatglm3", *words]


def start(command: list[str], windows: int) -> tuple[subprocess.Popen[str], list[dict[str, Any]]]:
    """A process that has computed so many more windows, and what it said."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = [json.loads(process.stdout.readline()) for _ in range(windows + 1)]
    return process, said


def finish(command: list[str]) -> tuple[int, str, str]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    return done.returncode, done.stdout, done.stderr


def test_killed_three_times_the_output_is_that_of_a_job_that_was_not(command: list[str], tmp_path: Path) -> None:
    done = []
    for windows in (1, 2, 1):
        process, said = start(command, windows)
        process.kill()
        assert process.wait() == -signal.SIGKILL
        process.communicate()
        done.append(said[-1]["rows"])
        assert not (tmp_path / "out.jsonl").exists()
    assert 64 == done[0] < done[1] < done[2] < ROWS
    status, out, err = finish(command)
    summary = json.loads(out.splitlines()[-1])
    assert (status, err) == (0, "") and (summary["event"], summary["rows"]) == ("summary", ROWS)
    assert done[2] <= summary["resumed"] < ROWS
    killed = (tmp_path / "out.jsonl").read_bytes()
    (tmp_path / "out.jsonl").unlink()
    assert finish(command)[0] == 0
    assert (tmp_path / "out.jsonl").read_bytes() == killed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_one_process_at_a_time_and_ctrl_c(command: list[str], tmp_path: Path) -> None:
    process, _ = start(command, 1)
    process.send_signal(signal.SIGSTOP)
    status, out, err = finish(command)
    assert (status, out) == (1, "")
    assert err == f"error: another process is writing {tmp_path / 'out.jsonl'}; wait for it, or give another output\n"
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on with it" in said and "Traceback" not in said
    assert (tmp_path / "out.jsonl.job" / "results").read_bytes().endswith(b"\n")
    assert not (tmp_path / "out.jsonl").exists()
