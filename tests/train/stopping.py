"""Runs that are stopped in the middle: by their reporter, or as a process that is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from chatglm3.train.loop import train
from train.runs import settings


def start(folder: Path, config: dict[str, Any], *words: str) -> subprocess.Popen[str]:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    command = [sys.executable, "-m", "chatglm3", "train", str(file), *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill_at(process: subprocess.Popen[str], line: str) -> None:
    """Kill the process when it says `line`."""
    assert process.stderr is not None
    for said in process.stderr:
        if said.startswith(line):
            process.kill()
            break
    process.communicate()
    assert process.wait() == -signal.SIGKILL


class StopError(Exception):
    """What stops a run in the middle."""


class Stopper:
    def __init__(self, step: int = 0) -> None:
        self.step = step
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def measured(self, step: int, found: Any) -> None: ...

    def progress(self, now: Any) -> None:
        if now.step == self.step:
            raise StopError


def stopped(model: Path, data: Path, output: Path, step: int = 3, /, **changes: Any) -> None:
    with pytest.raises(StopError):
        train(settings(model, data, output, **changes), reporter=Stopper(step))
