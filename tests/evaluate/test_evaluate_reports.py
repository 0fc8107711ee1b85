"""The reports as files: complete, escaped, and in need of nothing else."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from chatglm3.evaluate import Question, Report, html_report, json_report, markdown_report
from chatglm3.evaluate.markup import Html, element, join
from chatglm3.evaluate.measuring import FinishedPrompt
from chatglm3.evaluate.svg import confusion
from chatglm3.evaluate.text import COLUMNS, difference_columns, differences, findings, remarks, table

NASTY = '</pre><script>alert("1 & 2")</script>|`a`|\n# <b>'
VOID = {"meta"}


class Page(HTMLParser):
    """Every tag with its attributes, the text, and whether tags close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def nasty(report: Report) -> Report:
    """The report with markup wherever text of the user's can be."""
    classes = tuple((NASTY, "负面")[i] for i in range(2))
    question = Question(classes)
    models = tuple(
        replace(
            model,
            name=NASTY,
            prompts=(FinishedPrompt("title", NASTY),),
            conditions=tuple(
                replace(c, classes=tuple(replace(k, label=NASTY) for k in c.classes), failed=1, first_error=NASTY)
                for c in model.conditions
            ),
        )
        for model in report.models
    )
    return replace(report, question=question, models=models, label_counts={NASTY: 1}, about={"machine": NASTY})


def test_the_page_needs_nothing_else(report: Report) -> None:
    text = html_report(report)
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "base"} & {tag for tag, _ in page.tags}
    assert not {"src", "href", "srcset", "onload", "style"} & {name for _, attrs in page.tags for name in attrs}
    assert "http" not in text.replace("http-equiv", "") and "url(" not in text and "@import" not in text
    policy = next(attrs["content"] for _, attrs in page.tags if "http-equiv" in attrs)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text


def test_the_page_shows_what_was_measured(report: Report) -> None:
    page = Page(html_report(report))
    assert all(line in page.text for line in findings(report))
    assert all(cell in page.text for row in (*table(report), *differences(report)) for cell in row)
    assert all(prompt.text in page.text for model in report.models for prompt in model.prompts)
    assert all(value in page.text for value in report.about.values())
    labels = [attrs["aria-label"] or "" for tag, attrs in page.tags if tag == "svg"]
    assert len(labels) == 1 + 8 + 4  # accuracy, confusion matrices, reliability diagrams
    assert sum("Confusion" in label for label in labels) == 8 and sum("Reliability" in label for label in labels) == 4


def test_no_number_of_a_plot_is_outside_of_it(report: Report) -> None:
    for view, body in re.findall(r'<svg viewBox="0 0 ([\d. ]+)".*?>(.*?)</svg>', html_report(report), flags=re.DOTALL):
        width, height = map(float, view.split())
        for name, value in re.findall(r' (x|y|x1|x2|y1|y2)="([^"]+)"', body):
            assert 0 <= float(value) <= (width if name[0] == "x" else height)


def test_text_stays_text_on_the_page(nasty: Report) -> None:
    page = Page(html_report(nasty))
    assert not {"script", "b"} & {tag for tag, _ in page.tags}
    assert NASTY in page.text


def test_text_stays_text_in_markdown(nasty: Report) -> None:
    html = MarkdownIt("commonmark").enable("table").render(markdown_report(nasty))
    assert "<script" not in html and "<b>" not in html
    table_rows = [row.count("<td>") for row in re.findall(r"<tr>.*?</tr>", html, flags=re.DOTALL)]
    assert table_rows.count(len(COLUMNS)) == 8


def test_markdown_shows_what_was_measured(report: Report) -> None:
    text = markdown_report(report)
    assert text.startswith("# Chat against Base on 10 rows\n")
    assert f"| {' | '.join(COLUMNS)} |" in text
    lines = [line for model in report.models for prompt in model.prompts for line in prompt.text.splitlines()]
    assert all(f"\n    {line}\n" in text for line in lines)
    assert "4 comparisons were made" in text


def test_json_has_everything(report: Report) -> None:
    record = json.loads(json_report(report))
    assert record["findings"] == findings(report)
    assert record["question"]["labels"] == list(report.question.labels)
    assert record["models"][1]["conditions"][3]["accuracy"]["mean"] == report.models[1].conditions[3].accuracy.mean
    assert record["differences"][0]["p_value"] == report.differences[0].p_value
    assert record["models"][0]["conditions"][0]["predicted"] == [list(report.models[0].conditions[0].predicted[0])]


def test_a_report_of_one_model_compares_nothing(report: Report) -> None:
    alone = replace(report, models=report.models[:1], differences=())
    assert markdown_report(alone).startswith("# Chat on 10 rows\n")
    assert findings(alone) == [] and 'class="findings"' not in html_report(alone)


def test_a_label_without_rows_is_said_in_every_form(report: Report) -> None:
    line = "No measured row is labelled 正面, 中性: nothing is said about that, and macro-F1 counts it as 0."
    unseen = replace(report, label_counts={"正面": 0, "负面": 10, "中性": 0})
    assert remarks(report) == [] and remarks(unseen) == [line]
    assert line in markdown_report(unseen) and line in Page(html_report(unseen)).text
    assert json.loads(json_report(unseen))["remarks"] == [line]


def test_before_and_after_are_told_apart(report: Report) -> None:
    chat = report.models[0]
    both = replace(report, models=(replace(chat, adapter="out/adapter"), chat))
    assert difference_columns(both)[0] == "Chat with adapter − Chat"
    assert findings(both)[0].partition("rows ")[2].startswith("Chat with adapter is ")
    text = markdown_report(both)
    assert text.startswith("# Chat with adapter against Chat on 10 rows\n")
    assert "| Chat nano + adapter |" in text and "| Chat nano |" in text
    assert "| Chat model | nano with the adapter out/adapter: " in text and "| Chat model | nano: " in text
    assert text.count("### Chat, zero-shot\n") == 1  # they were asked the same
    assert "only Chat with adapter right" in Page(html_report(both)).text


def test_markup_escapes_whatever_is_not_markup() -> None:
    assert element("p", {"class": 'a"<', "id": ""}, "x<y", element("b", None, "&")) == (
        '<p class="a&quot;&lt;">x&lt;y<b>&amp;</b></p>'
    )
    assert isinstance(join("<", Html("<br>")), Html) and join("<", Html("<br>")) == "&lt;<br>"


def test_many_and_long_labels_fit_their_matrix() -> None:
    labels = [f"一个很长的标签{i}" for i in range(20)]
    plot = confusion("many", labels, [[i] * 21 for i in range(20)], "Chat")
    width = float(re.findall(r'viewBox="0 0 ([\d.]+)', plot)[0])
    assert width > 20 * 52 and "…" in plot
