"""Job files: the words of the command line in YAML, and which of the two is heard."""

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


@pytest.fixture(autouse=True)
def bundled_model(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.setenv("CHATGLM3_MODEL", "nano")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


@pytest.fixture
def write_job(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_a_job_file_says_the_same(cli: Cli, tmp_path: Path, out: Path, write_job: Callable[[str], Path]) -> None:
    job = write_job(
        f"input: {EXAMPLES}\noutput: {out}\nmax-new-tokens: 3\nlimit: 6\nstop: [。, ！]\ntruncate: true\ntop_k: null\n"
        "early_stopping: false\nmodel: nano\nencoding:\nsystem: |-\n  一行，\n  又一行。\n"
        "prompt: |-\n  - 评论：{review}\n"
    )
    assert cli("run", job).status == 0
    words = ("--system", "一行，\n又一行。", "--prompt=- 评论：{review}", "--stop", "。", "--stop", "！", "--truncate")
    short = ("--max-new-tokens", "3", "--limit", "6")
    assert cli("run", EXAMPLES, tmp_path / "b.jsonl", *words, *short).status == 0
    assert out.read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_the_command_line_comes_first(cli: Cli, tmp_path: Path, out: Path, write_job: Callable[[str], Path]) -> None:
    short = f"input: {EXAMPLES}\nlimit: 6\nmax_new_tokens: 3\n"
    job = write_job(f"{short}output: {tmp_path / 'other.jsonl'}\ncolumn: label\n")
    assert cli("run", job, out, "--prompt", "评论：{review}", "--limit", "2").status == 0
    assert not (tmp_path / "other.jsonl").exists()
    direct = ("--prompt", "评论：{review}", "--limit", "2", "--max-new-tokens", "3")
    assert cli("run", EXAMPLES, tmp_path / "direct.jsonl", *direct).status == 0
    assert out.read_bytes() == (tmp_path / "direct.jsonl").read_bytes()
    shown = json.loads(cli("run", job, tmp_path / "x.jsonl", "--column", "review", "--dry-run", "--json").out)
    assert shown["rows"] == 6 and "评论" not in shown["shown"][0]
    job.write_text(f"{short}prompt: '{{review}}'\n", encoding="utf-8")
    assert "give an OUTPUT" in cli("run", job).err
    assert cli("run", job, tmp_path / "new.jsonl").status == 0 and (tmp_path / "new.jsonl").exists()


@pytest.mark.parametrize(
    ("labels", "columns"),
    [
        ("[yes, 01]", ["p_yes", "p_01"]),
        ("[true, false]", ["p_true", "p_false"]),
        ("[TRUE, null]", ["p_TRUE", "p_null"]),
        ("[on, 1.0]", ["p_on", "p_1.0"]),
        ("[0x10, 2024-01-01]", ["p_0x10", "p_2024-01-01"]),
        ("true,false", ["p_true", "p_false"]),
        ("['~', \"no\"]", ["p_~", "p_no"]),
    ],
)
def test_labels_are_the_texts_that_stand_there(
    cli: Cli, tmp_path: Path, write_job: Callable[[str], Path], labels: str, columns: list[str]
) -> None:
    out, source = tmp_path / "out.csv", tmp_path / "in.jsonl"
    source.write_text('{"review": "好"}\n', encoding="utf-8")
    result = cli("classify", write_job(f"input: {source}\noutput: {out}\ncolumn: review\nlabels: {labels}\n"))
    assert result.status == 0, result.err
    with out.open(encoding="utf-8-sig", newline="") as file:
        assert [name for name in csv.DictReader(file).fieldnames or () if name.startswith("p_")] == columns


@pytest.mark.parametrize(
    ("text", "status", "words"),
    [
        ("inptu: x\n", 1, "unknown word 'inptu'; did you mean input?"),
        ("zzz: x\n", 1, "unknown word 'zzz'; known: adapter, banned"),
        ("output: x\n", 1, "names an input"),
        ("input:\noutput: x\n", 1, "names an input"),
        ("input: x\ncolumn: a\n", 2, "give an OUTPUT, on the command line or in the job file"),
        ("- x\n", 1, "one line for each word"),
        ("", 1, "one line for each word"),
        ("? [a]\n: b\n", 1, "one line for each word"),
        ("a: [\n", 1, "is not YAML"),
        ("a: b\n---\na: b\n", 1, "is not YAML"),
        ("input: x\noutput: y\nprompt: {review}\n", 1, "prompt must be a value or a list of values, not a mapping"),
        ("input: x\noutput: y\nstop: &a [*a]\n", 1, "stop must be a value or a list of values, not a list of lists"),
        ("input: x\noutput: y\ncolumn: a\ncolumn: b\n", 1, "column is given twice"),
        ("input: x\noutput: y\nmax-new-tokens: 3\nmax_new_tokens: 4\n", 1, "max_new_tokens is given twice"),
        ("input: [x, y]\noutput: y\ncolumn: a\n", 2, "input in the job file must be one value"),
        ("input: x\noutput: y\ncolumn: a\nmodel: [nano, nano]\n", 2, "model in the job file must be one value"),
        ("input: x\noutput: y\ncolumn: a\ntop_k: many\n", 2, "--top-k"),
        ("input: x\noutput: y\ncolumn: a\ntruncate: 3\n", 2, "--truncate in the job file must be true or false"),
        ("input: x\noutput: y\ncolumn: a\ntruncate: true\n", 2, "give --max-new-tokens with --truncate"),
        ("input: x\noutput: y\n", 2, "give either --prompt or --column"),
        ("input: x\noutput: y\nprompt: '{a}'\ncolumn: a\n", 2, "give either --prompt or --column"),
    ],
)
def test_job_files_that_cannot_be(
    cli: Cli, write_job: Callable[[str], Path], text: str, status: int, words: str
) -> None:
    result = cli("run", write_job(text))
    assert (result.status, result.out) == (status, "") and words in result.err and result.err.count("\n") == 1


def test_a_job_file_is_no_input_of_another(cli: Cli, tmp_path: Path, write_job: Callable[[str], Path]) -> None:
    job = write_job(f"input: {tmp_path / 'job.yaml'}\noutput: o.csv\nprompt: 'x {{a}}'\n")
    result = cli("run", job)
    assert result.status == 1 and "input must name a table" in result.err and result.err.count("\n") == 1
