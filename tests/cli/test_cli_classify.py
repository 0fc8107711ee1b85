"""`chatglm3 classify`: labels, examples, and refusals."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import chatglm3
from cli.runner import Result

Cli = Callable[..., Result]

EXAMPLES = Path(chatglm3.__file__).parents[2] / "examples" / "reviews.jsonl"
WORDS = ("--column", "review", "--output-prefix", "model_", "--limit", "8")


@pytest.fixture(autouse=True)
def bundled_model(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.setenv("CHATGLM3_MODEL", "nano")


def columns(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file).fieldnames or ())


@pytest.mark.parametrize(
    "labels", [("--labels", "正面,负面"), ("--labels", "正面， 负面"), ("--labels", "正面", "--labels", "负面")]
)
def test_labels_in_one_word_or_several(cli: Cli, tmp_path: Path, labels: tuple[str, ...]) -> None:
    result = cli("classify", EXAMPLES, tmp_path / "out.csv", *labels, *WORDS)
    assert (result.status, result.err) == (0, "") and result.out.startswith(f"{tmp_path / 'out.csv'}: 8 rows, 0 with")
    new = ("label", "probability", "margin", "p_正面", "p_负面", "error")
    assert columns(tmp_path / "out.csv") == ["id", "review", "label", *(f"model_{name}" for name in new)]


def test_examples_calibration_and_a_job_file(cli: Cli, tmp_path: Path) -> None:
    shown = tmp_path / "shown.csv"
    shown.write_text("review,kind\n很好看,正面\n太吵了,负面\n", encoding="gbk")
    words = (
        "--labels",
        "正面,负面",
        "--examples",
        shown,
        "--example-label",
        "kind",
        "--calibrate",
        "--prompt",
        "评：{review}",
    )
    rest = ("--output-prefix", "model_", "--limit", "8")
    assert cli("classify", EXAMPLES, tmp_path / "a.jsonl", *words, *rest).status == 0
    job = tmp_path / "job.yaml"
    job.write_text(
        f"input: {EXAMPLES}\noutput: {tmp_path / 'b.jsonl'}\nlabels: [正面, 负面]\nexamples: {shown}\ncalibrate: true\n"
        "example_label: kind\nprompt: 评：{review}\noutput_prefix: model_\nlimit: 8\n",
        encoding="utf-8",
    )
    assert cli("classify", job).status == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    preview = json.loads(cli("classify", EXAMPLES, tmp_path / "c.jsonl", *words, *rest, "--dry-run", "--json").out)
    assert preview["event"] == "dry_run" and len(preview["shown"]) == 3
    assert "评：很好看" in preview["shown"][0] and preview["shown"][0].count("<|assistant|>") == 3


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ((), 2, "give --labels"),
        (("--labels", "正面"), 2, "at least two labels"),
        (("--labels", "正面,正面"), 2, "正面 is given twice"),
        (("--labels", "正面,"), 2, "non-empty"),
        (("--labels", "a,b", "--output-prefix", ""), 1, "another 'label'; choose --output-prefix, for example model_"),
        (("--labels", "a,b", "--examples", "nothing.csv"), 1, "nothing.csv: No such file"),
        (("--labels", "a,b", "--examples", str(EXAMPLES)), 1, "one of the labels"),
        (("--labels", "a,b", "--examples", str(EXAMPLES), "--example-label", "kind"), 1, "has no column 'kind'"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(
    cli: Cli, tmp_path: Path, words: tuple[str, ...], status: int, message: str
) -> None:
    result = cli("classify", EXAMPLES, tmp_path / "out.jsonl", *WORDS, *words)
    assert (result.status, result.out) == (status, "") and message in result.err, result.err
    assert result.err.count("\n") == 1 and not list(tmp_path.iterdir())
