"""The two recipes of examples/: each command runs as it stands, and what is learned is what is measured."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chatglm3.evaluate import Question
from chatglm3.model.hub import resolve
from chatglm3.tokenizer import Tokenizer
from chatglm3.train.config import read_config
from chatglm3.train.dataset import load_dataset
from measured_rows import measured_ids

pytest.importorskip("accelerate")
ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
FILES = ("takeaway.jsonl", "takeaway_rows.py", "takeaway-chat.yaml", "takeaway-base.yaml")
TOPICS = ("配送", "口味", "分量", "服务")
KINDS = pytest.mark.parametrize(("kind", "model"), [("chat", "nano"), ("base", "nano-base")])


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("takeaway") / "rows"
    subprocess.run([sys.executable, EXAMPLES / "takeaway_rows.py", folder], check=True, timeout=60)
    return folder


def read(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_no_review_is_learned_and_measured(rows: Path) -> None:
    learned, measured = (read(rows / f"{name}.jsonl") for name in ("learn", "test"))
    assert (len(learned), len(measured)) == (120, 80)
    assert len({row["review"] for row in (*learned, *measured)}) == 200
    assert {row["topic"] for row in learned} == {row["topic"] for row in measured} == set(TOPICS)


@KINDS
def test_rows_are_learned_in_the_words_that_they_are_measured_in(kind: str, model: str, rows: Path) -> None:
    config, _ = read_config(EXAMPLES / f"takeaway-{kind}.yaml")
    assert config.model == model
    tokenizer, task = Tokenizer.from_pretrained(resolve(model)), Question(TOPICS).task(chat=kind == "chat")
    data = load_dataset(rows / f"{kind}.jsonl", tokenizer, max_length=config.data.max_length)
    expected = [measured_ids(tokenizer, task, row["review"], row["topic"]) for row in read(rows / "learn.jsonl")]
    assert [tuple(row.input_ids) for row in data.rows] == expected


@KINDS
def test_a_recipe_runs_as_it_stands(kind: str, model: str, tmp_path: Path) -> None:
    """In a copy of the folder, with the commands of this interpreter, and fewer steps than the file says."""
    copy, commands = tmp_path / "examples", tmp_path / "bin"
    copy.mkdir(), commands.mkdir()
    for name in (*FILES, f"takeaway_{kind}.sh"):
        shutil.copy(EXAMPLES / name, copy)
    for name, words in (("python", ""), ("chatglm3", " -m chatglm3")):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{words} "$@"\n')
        (commands / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
    command = ["sh", str(copy / f"takeaway_{kind}.sh"), "epochs=4"]
    done = subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "build" / "takeaway" / kind / "adapter" / "adapter_model.safetensors").is_file()
    measured = re.findall(
        rf"^{kind.title()} {model}( \+ adapter)? +zero-shot +label scoring +(\S+) %", done.stdout, re.M
    )
    assert [adapter for adapter, _ in measured] == [" + adapter", ""]
    assert float(measured[0][1]) > float(measured[1][1])
    assert f"{kind.title()} with adapter" in done.stdout and "On these 80 rows" in done.stdout
