"""`chatglm3 evaluate` in a process of its own, and the ways it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import chatglm3
from adapter_folders import lora_folder
from chatglm3.model.config import ModelConfig
from cli.runner import Result, run_process
from cli.terminal import Terminal

Cli = Callable[..., Result]
REVIEWS = Path(__file__).parents[2] / "examples" / "reviews.jsonl"
ASSETS = Path(chatglm3.__file__).parent / "assets"
needs_bundled_models = pytest.mark.skipif(not (ASSETS / "nano").is_dir(), reason="the bundled models are absent")
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
    assert result.err == ""  # progress is for terminals
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
def test_an_adapter_beside_its_bare_model(cli: Cli, tmp_path: Path) -> None:
    adapter = lora_folder(tmp_path / "lora", ModelConfig.from_pretrained(ASSETS / "nano"))
    columns = ("--text-column", "text", "--label-column", "grade")
    data = tmp_path / "data.csv"
    data.write_text("text,grade\n很好看。,正面\n,正面\n", encoding="utf-8")
    options = ("--labels", "正面,负面", "--chat", "nano", "--examples", "0", *columns)
    result = cli("evaluate", data, *options, "--chat-adapter", adapter, "--markdown", tmp_path / "report.md")
    assert result.status == 0, result.err
    assert "Chat with adapter against Chat on 2 rows" in result.out and "Chat with adapter is " in result.out
    assert "No measured row is labelled 负面" in result.out
    assert "1 failed and count as wrong (the text is empty)" in result.out
    report = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert str(adapter).replace("_", "\\_") in report and "weights with the adapter " in report


def test_a_folder_that_is_no_adapter(cli: Cli, tmp_path: Path) -> None:
    for kind, options in (("chat", QUICK), ("base", ("--labels", "正面,负面", "--base", "nowhere"))):
        result = cli("evaluate", REVIEWS, *options, f"--{kind}-adapter", tmp_path)
        assert result.status == 1 and f"{tmp_path}: no adapter" in result.err and result.err.count("\n") == 1


@needs_bundled_models
def test_a_report_is_replaced_only_if_asked(cli: Cli, tmp_path: Path) -> None:
    report, other = tmp_path / "report.md", tmp_path / "report.json"
    report.write_text("kept", encoding="utf-8")
    options = (*QUICK[:4], "--examples", "0", "--sample", "1", "--json", other, "--markdown", report)
    result = cli("evaluate", REVIEWS, *options)
    assert result.status == 1 and result.err == f"error: {report} exists; give another name, or --overwrite\n"
    assert result.out == "" and report.read_text(encoding="utf-8") == "kept" and not other.exists()
    result = cli("evaluate", REVIEWS, *options, "--overwrite")
    assert result.status == 0, result.err
    assert report.read_text(encoding="utf-8").startswith("# Chat on 1 rows") and other.is_file()


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
        (("--labels", "正面,负面", "--chat", "nano", "--base-adapter", "a"), "give --base too"),
        (("--labels", "正面,负面", "--base", "nano-base", "--chat-adapter", "a"), "give --chat too"),
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
        ('{"review": "a", "label": "正面"}\n', (), "too few rows for 2 examples"),
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
