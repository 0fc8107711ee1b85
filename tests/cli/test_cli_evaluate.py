"""`chatglm3 evaluate` in a process of its own, and the ways it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import chatglm3
from cli.runner import Result, run_process
from cli.terminal import Terminal

Cli = Callable[..., Result]
REVIEWS = Path(__file__).parents[2] / "examples" / "reviews.jsonl"
needs_bundled_models = pytest.mark.skipif(
    not (Path(chatglm3.__file__).parent / "assets" / "nano").is_dir(), reason="the bundled models are absent"
)
QUICK = ("--labels", "正面,负面", "--chat", "nano", "--examples", "2", "--seeds", "1", "--sample", "6")


@needs_bundled_models
def test_both_models_on_the_example_reviews(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("report.html", "report.md", "report.json")]
    outputs = [
        word
        for option, path in zip(("--report", "--markdown", "--json"), files, strict=True)
        for word in (option, path)
    ]
    result = run_process("evaluate", REVIEWS, *QUICK, "--base", "nano-base", "--prompt", "评论：{review}", *outputs)
    assert result.status == 0, result.err
    assert "Chat against Base on 6 rows" in result.out
    assert result.out.count("label scoring") == 4 + 2  # in the table, and in what the rows show
    assert "accurate" in result.out and "4 comparisons" in result.out
    steps = result.err.splitlines()
    assert steps[0] == "loading nano (0 of 48 rows done)" and len(steps) == 2 * (1 + 4)
    page, markdown, record = (path.read_text(encoding="utf-8") for path in files)
    assert page.startswith("<!DOCTYPE html>") and markdown.startswith("# Chat against Base on 6 rows")
    assert json.loads(record)["models"][0]["name"] == "nano"


@needs_bundled_models
def test_labels_may_have_other_names_in_the_file(cli: Cli, tmp_path: Path) -> None:
    data = tmp_path / "data.csv"
    data.write_text("text,grade\n很好看。,1\n太吵了。,0\n", encoding="utf-8")
    columns = ("--text-column", "text", "--label-column", "grade")
    result = cli("evaluate", data, "--labels", "正面=1,负面=0", "--chat", "nano", "--examples", "0", *columns)
    assert result.status == 0, result.err
    assert "Chat on 2 rows" in result.out and "accurate" not in result.out


@needs_bundled_models
def test_a_terminal_shows_a_bar(tmp_path: Path) -> None:
    terminal = Terminal(["evaluate", REVIEWS, *QUICK], tmp_path)
    try:
        terminal.wait("free generation")
        terminal.wait("Chat on 6 rows")
        assert terminal.ends() == 0
    finally:
        terminal.close()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--labels", "正面,负面"), "--chat, --base or both"),
        (("--labels", "正面", "--chat", "nano"), "two labels"),
        (("--labels", "正面,正面", "--chat", "nano"), "given once"),
        (("--labels", "正面=1,负面=1", "--chat", "nano"), "given once"),
        (("--labels", "正面,", "--chat", "nano"), "non-empty"),
        (("--labels", "正面,负面", "--chat", "nano", "--prompt", "text"), "{text}"),
        (("--labels", "正面,负面", "--chat", "nano", "--seeds", "0"), "--seeds"),
        (("--labels", "正面,负面", "--chat", "nano", "--train", "a", "--train-fraction", "0.5"), "not both"),
        (("--labels", "正面,负面", "--chat", "nano", "--report", "nowhere/a.html"), "no folder nowhere"),
        (("--labels", "正面,负面", "--chat", "nano", "--json", "a", "--markdown", "a"), "named twice"),
        ((), "--labels"),
    ],
)
def test_usage_errors(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = cli("evaluate", REVIEWS, *options)
    assert result.status == 2 and words in result.err and result.err.count("\n") == 1, result.err
    assert not list(tmp_path.iterdir())


def test_the_data_are_not_overwritten(cli: Cli, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text("{}\n", encoding="utf-8")
    result = cli("evaluate", data, *QUICK, "--json", tmp_path / "." / "data.jsonl")
    assert result.status == 2 and "named twice" in result.err and data.read_text(encoding="utf-8") == "{}\n"


@pytest.mark.parametrize(
    ("content", "options", "words"),
    [
        ("", (), "no rows"),
        ('{"text": "a", "label": "正面"}\n', (), "no column 'review'; it has text, label"),
        ('{"review": "a", "label": "正面"}\n{"review": "b"}\n', (), "row 2: no label"),
        ('{"review": "a", "label": "中性"}\n', (), "'中性'"),
        ('{"review": "a", "label": "正面"}\n', (), "too few for 2 examples"),
        ('{"review": "a", "label": "正面"}\n', ("--train", "nowhere.jsonl"), "nowhere.jsonl"),
        ("not json\n", (), "data.jsonl"),
    ],
)
def test_data_that_cannot_be_measured(
    cli: Cli, tmp_path: Path, content: str, options: tuple[str, ...], words: str
) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(content, encoding="utf-8")
    result = cli("evaluate", data, *QUICK, *options)
    assert result.status == 1 and words in result.err and result.err.count("\n") == 1, result.err
    assert result.out == ""


def test_a_model_of_the_other_kind(cli: Cli) -> None:
    result = cli("evaluate", REVIEWS, *QUICK[:2], "--base", "nano", "--examples", "0")
    assert result.status == 1 and "nano is a Chat model" in result.err
