"""`chatglm3 run`: the words of the command line, what people and machines are told, and refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import chatglm3
from chatglm3.bulk import Progress, RunJob, Source, run_job
from chatglm3.cli.job import carry_out, model_source
from chatglm3.cli.options import Loading
from chatglm3.engine.params import SamplingParams
from cli.runner import Result
from cli.terminal import Terminal

Cli = Callable[..., Result]

EXAMPLES = Path(chatglm3.__file__).parents[2] / "examples" / "reviews.jsonl"
SHORT = ("--max-new-tokens", "3", "--limit", "6")


@pytest.fixture(autouse=True)
def bundled_model(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.setenv("CHATGLM3_MODEL", "nano")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out.jsonl"


def rows_of(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_people_are_told_rows_errors_and_speed(cli: Cli, tmp_path: Path, out: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"a": "好"}\n{"a": "好"}\n{"a": null}\n', encoding="utf-8")
    result = cli("run", source, out, "--prompt", "评论：{a}", "--max-new-tokens", "2")
    lines = result.out.splitlines()
    assert (result.status, result.err) == (0, "")
    assert lines[0] == f"{out}: 3 rows (different prompts: 1), 1 with an error"
    assert lines[1] == "  row 3: the row has no value for the column 'a'"
    assert "rows/s" in lines[2] and "left" not in lines[2] and len(lines) == 3
    assert [row["error"] is None for row in rows_of(out)] == [True, True, False]


def test_a_job_in_which_every_row_failed_has_failed(cli: Cli, tmp_path: Path, out: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"a": " "}\n{"a": null}\n', encoding="utf-8")
    result = cli("run", source, out, "--column", "a", "--output-prefix", "new_", "--max-new-tokens", "2")
    assert result.status == 1 and result.out.startswith(f"{out}: 2 rows, 2 with an error\n  row 1: the text is empty\n")
    assert result.err == f"error: no row of {out} has a result; its column new_error says why\n"
    assert [bool(row["new_error"]) for row in rows_of(out)] == [True, True]
    out.unlink()
    shown = cli("run", source, out, "--column", "a", "--max-new-tokens", "2", "--json")
    assert shown.status == 1 and json.loads(shown.out.splitlines()[-1])["errors"] == 2 and shown.err.count("\n") == 1


def test_ctrl_c_says_whether_anything_is_kept(out: Path, capfd: pytest.CaptureFixture[str]) -> None:
    job = RunJob(input=EXAMPLES, output=out, column="review")

    @contextmanager
    def interrupted() -> Iterator[chatglm3.ChatGLM]:
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        carry_out(job, Source("nano", interrupted), dry_run=False, as_json=True)
    assert capfd.readouterr().err == "stopped; nothing was done yet\n" and not list(out.parent.iterdir())


def test_another_model_is_called_by_its_name(cli: Cli, out: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.rows == progress.total:
            raise KeyboardInterrupt

    greedy = SamplingParams(temperature=0, max_new_tokens=3)
    job = RunJob(input=EXAMPLES, output=out, column="review", limit=6, sampling=greedy)
    with pytest.raises(KeyboardInterrupt):
        run_job(job, model_source("nano", Loading()), stop)
    for words, name in ((("--model", "nano-base"), "nano-base"), (("--quantize", "8"), "nano, 8 bits")):
        result = cli("run", EXAMPLES, out, "--column", "review", *SHORT, *words)
        assert result.status == 1 and f'another model: was "nano", is "{name}"; use it again' in result.err
    assert cli("run", EXAMPLES, out, "--column", "review", *SHORT).status == 0


def test_machines_are_told_an_object_a_line(cli: Cli, out: Path) -> None:
    result = cli("run", EXAMPLES, out, "--column", "review", "--json", *SHORT)
    events = [json.loads(line) for line in result.out.splitlines()]
    assert (result.status, result.err) == (0, "")
    assert [event["event"] for event in events] == ["progress", "progress", "summary"]
    assert [event["rows"] for event in events] == [0, 6, 6] and events[1]["total"] == 6
    assert {"rows_per_second", "tokens_per_second", "prefix_hits", "seconds_left", "errors"} <= set(events[1])
    assert events[2]["output"] == str(out) and events[2]["first_errors"] == [] and events[2]["prompts"] == 6


def test_greedy_unless_told_otherwise(cli: Cli, tmp_path: Path) -> None:
    for name, words in (("a", ()), ("b", ("--temperature", "0")), ("c", ("--seed", "9"))):
        assert cli("run", EXAMPLES, tmp_path / f"{name}.jsonl", "--column", "review", *words, *SHORT).status == 0
    a, b, c = ((tmp_path / f"{name}.jsonl").read_bytes() for name in "abc")
    assert a == b == c


def test_system_history_choices_and_schema_come_from_the_command_line(cli: Cli, tmp_path: Path, out: Path) -> None:
    history = tmp_path / "history.json"
    history.write_text(json.dumps([{"role": "user", "content": "你好"}, {"role": "assistant", "content": "你好"}]))
    words = ("--prompt", "{review}好不好？", "--system", "只回答一个词。", "--history", history)
    assert cli("run", EXAMPLES, out, *words, "--choices", "好，不好", "--limit", "4").status == 0
    assert {row["answer"] for row in rows_of(out)} <= {"好", "不好"}
    pytest.importorskip("llguidance")
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}))
    out.unlink()
    assert cli("run", EXAMPLES, out, *words, "--json-schema", schema, "--limit", "4").status == 0
    assert {row["answer"] for row in rows_of(out)} <= {'{"n": 1}', '{"n": 2}'}, rows_of(out)


def test_a_dry_run_shows_three_finished_prompts_and_writes_nothing(cli: Cli, tmp_path: Path, out: Path) -> None:
    result = cli("run", EXAMPLES, out, "--prompt", "评论：{review}", "--system", "判断情感。", *SHORT, "--dry-run")
    first = json.loads(EXAMPLES.read_text(encoding="utf-8").splitlines()[0])["review"]
    assert (result.status, result.err) == (0, "") and not list(tmp_path.iterdir())
    assert result.out.count("<|system|>") == 3 and f"评论：{first}" in result.out
    assert "6 rows, 6 prompts to compute, 0 rows without one; about" in result.out.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        ((), 2, "give either --prompt or --column"),
        (("--prompt", "{review}", "--column", "review"), 2, "give either --prompt or --column"),
        (("--column", "review", "--limit", "0"), 2, "--limit"),
        (("--column", "review", "--top-k", "-1"), 2, "top_k must be"),
        (("--column", "text"), 1, "the columns are 'id', 'review', 'label'"),
        (("--prompt", "{review"), 1, "names no column"),
        (("--column", "review", "--history", "nothing.json"), 1, "nothing.json: No such file"),
        (("--column", "review", "--model", "no/such/folder"), 1, "no/such/folder"),
        (("--column", "review", "--encoding", "utf-16"), 1, "line 1 is not UTF-16"),
        (("--column", "review", "--output-prefix", "re", "--prompt", "x"), 2, "give either"),
        (("--column", "review", "--truncate"), 2, "give --max-new-tokens with --truncate"),
        (("--column", "review", "--truncate", "--max-new-tokens", "99999"), 1, "no row can fit"),
    ],
)
def test_refusals_are_one_line_and_leave_nothing(
    cli: Cli, tmp_path: Path, out: Path, words: tuple[str, ...], status: int, message: str
) -> None:
    result = cli("run", EXAMPLES, out, *words)
    assert (result.status, result.out) == (status, "") and message in result.err, result.err
    assert result.err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_an_output_is_needed_and_is_not_overwritten(cli: Cli, out: Path) -> None:
    assert "give an OUTPUT" in cli("run", EXAMPLES).err
    out.write_text("mine")
    result = cli("run", EXAMPLES, out, "--column", "review")
    assert result.status == 1 and "out.jsonl exists; give another output, or remove it first" in result.err
    assert out.read_text() == "mine"


def test_a_terminal_shows_a_bar(tmp_path: Path) -> None:
    command = ["run", EXAMPLES, tmp_path / "out.jsonl", "--column", "review", "--model", "nano", *SHORT]
    terminal = Terminal(command, tmp_path)
    try:
        terminal.wait("6/6")
        terminal.wait("6 rows, 0 with an error")
        assert terminal.ends() == 0
    finally:
        terminal.close()


def test_help_and_usage_errors_import_nothing_heavy() -> None:
    script = (
        "import sys\nfrom chatglm3.cli import execute\n"
        "for name in ('run', 'classify'):\n    assert (execute([name, '--help']), execute([name, 'x.csv'])) == (0, 2)\n"
        "heavy = {'torch', 'numpy', 'rich', 'yaml', 'pyarrow'} & sys.modules.keys()\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
