"""Chat, Base or both on labelled rows: what they get right, how sure they are, and what the rows do and do not show.

    from chatglm3 import evaluate

    sample = evaluate.read_sample("reviews.jsonl", ["正面", "负面"])
    report = evaluate.compare(sample, evaluate.Question(("正面", "负面")), chat="nano", base="nano-base")
    Path("report.html").write_text(evaluate.html_report(report), encoding="utf-8")

Each model sees the prompt form it was trained for, the same rows and the same examples.
"""

from chatglm3.evaluate.data import LabelledText, Sample, read_sample
from chatglm3.evaluate.markdown import markdown_report
from chatglm3.evaluate.measuring import ModelResult
from chatglm3.evaluate.page import html_report
from chatglm3.evaluate.paired import Difference
from chatglm3.evaluate.question import Question
from chatglm3.evaluate.report import Report, compare
from chatglm3.evaluate.summary import Condition
from chatglm3.evaluate.text import json_report

__all__ = [
    "Condition",
    "Difference",
    "LabelledText",
    "ModelResult",
    "Question",
    "Report",
    "Sample",
    "compare",
    "html_report",
    "json_report",
    "markdown_report",
    "read_sample",
]
