"""The metrics of generated text: values computed by hand, and those of the libraries that others use."""

from __future__ import annotations

import random
import subprocess
import sys
from math import exp, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("jieba")

from chatglm3.train.metrics import (
    accuracy,
    bleu4,
    common_subsequence,
    exact_match,
    label_in,
    labels_of,
    rouge,
    words,
)

TEXTS = (
    "今天天气很好，我们去公园玩。",
    "今天天气不好，我们不去公园。",
    "北京是中国的首都，也是一座历史名城。",
    "中国的首都是北京。",
    "好好好好",
    "The weather is fine today, the sky is blue.",
    "the sky  is blue\n and the weather is fine",
    "类型#裤*版型#宽松：这条裤子很宽松，穿着舒适。",
    "1+1=2",
    "！",
)


def test_words_are_jiebas_and_no_white_space() -> None:
    assert words("今天天气 很好\n") == ["今天天气", "很", "好"]
    assert words(" \n") == words("") == []


def test_rouge_by_hand() -> None:
    # a b c d against a c d e f: 3 words and 1 pair (c d) in common; the subsequence is a c d
    scores = rouge("a b c d", "a c d e f")
    assert scores["rouge-1"] == pytest.approx(100 * 2 * (3 / 4) * (3 / 5) / (3 / 4 + 3 / 5))
    assert scores["rouge-2"] == pytest.approx(100 * 2 * (1 / 3) * (1 / 4) / (1 / 3 + 1 / 4))
    assert scores["rouge-l"] == pytest.approx(100 * 2 * (3 / 4) * (3 / 5) / (3 / 4 + 3 / 5))
    assert rouge("a b a b", "a b") == {
        "rouge-1": 100,  # each word counts once
        "rouge-2": pytest.approx(100 * 2 * 1 * (1 / 2) / (1 + 1 / 2)),
        "rouge-l": pytest.approx(100 * 2 * 1 * (2 / 4) / (1 + 2 / 4)),
    }
    assert rouge("负面", "负面") == {"rouge-1": 100, "rouge-2": 0, "rouge-l": 100}


def test_bleu_by_hand() -> None:
    # jieba leaves the spaces: a _ b _ c against a _ b _ d; 4 of 5 words, 3 of 4 pairs, 2 of 3 triples, 1 of 2
    assert bleu4("a b c", "a b d") == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    # a shorter answer, of which all n-grams are there: only the brevity counts
    assert bleu4("a b c", "a b c d") == pytest.approx(exp(1 - 7 / 5))
    # one word in common: the orders 2 to 4 count 1/2, 1/4 and 1/8, over 2, 1 and 1 n-grams
    assert bleu4("好看！", "好吃？！") == pytest.approx(
        exp((log(1 / 2) + log(1 / 2) + log(1 / 4) + log(1 / 8)) / 4) * exp(1 - 3 / 2)
    )
    assert bleu4("今天天气很好，去公园吧。", "今天天气很好，去公园吧。") == 1


@pytest.mark.parametrize("empty", ["", " ", "\n"])
def test_what_is_empty_scores_nothing(empty: str) -> None:
    for pair in ((empty, "你好"), ("你好", empty), (empty, "")):
        assert rouge(*pair) == {"rouge-1": 0, "rouge-2": 0, "rouge-l": 0}
        assert bleu4(*pair) == 0


@pytest.mark.parametrize("reference", TEXTS)
@pytest.mark.parametrize("hypothesis", TEXTS)
def test_rouge_is_rouge_chineses(hypothesis: str, reference: str) -> None:
    library = pytest.importorskip("rouge_chinese")
    wanted = library.Rouge().get_scores(" ".join(words(hypothesis)), " ".join(words(reference)))[0]
    for name, score in rouge(hypothesis, reference).items():
        assert score == pytest.approx(100 * wanted[name]["f"], abs=1e-5)


@pytest.mark.parametrize("reference", TEXTS)
@pytest.mark.parametrize("hypothesis", TEXTS)
def test_bleu_is_nltks(hypothesis: str, reference: str) -> None:
    nltk = pytest.importorskip("nltk.translate.bleu_score")
    jieba = pytest.importorskip("jieba")
    wanted = nltk.sentence_bleu(
        [jieba.lcut(reference)], jieba.lcut(hypothesis), smoothing_function=nltk.SmoothingFunction().method3
    )
    assert bleu4(hypothesis, reference) == pytest.approx(wanted, abs=1e-12)


@given(st.lists(st.sampled_from("abc")), st.lists(st.sampled_from("abc")))
def test_the_common_subsequence_is_the_longest(a: list[str], b: list[str]) -> None:
    lengths = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            lengths[i + 1][j + 1] = lengths[i][j] + 1 if x == y else max(lengths[i][j + 1], lengths[i + 1][j])
    assert common_subsequence(a, b) == lengths[-1][-1]


def test_long_texts_take_no_time() -> None:
    rng = random.Random(0)
    a, b = (rng.choices("abcdefgh", k=5000) for _ in range(2))
    assert 2500 < common_subsequence(a, b) < 5000


def test_exact_match_looks_past_white_space_around() -> None:
    assert exact_match("\n 正面\n", "正面")
    assert not exact_match("正 面", "正面")


def test_references_are_labels_if_they_are_few_and_come_again() -> None:
    assert labels_of(["正面", "负面\n", "正面", "负面"]) == ("正面", "负面")
    assert labels_of(["正面", "负面", "正面"]) == ()  # too few rows to say
    assert labels_of(["正面"] * 10) == ()
    assert labels_of([str(i) for i in range(30)] * 2) == ()
    assert labels_of(["", "正面"] * 5) == ()


def test_the_label_of_an_answer_is_the_one_that_it_names() -> None:
    labels = ("正面", "非常正面", "负面")
    assert label_in("\n正面", labels) == "正面"
    assert label_in("我觉得非常正面。", labels) == "非常正面"
    assert label_in("正面，不是负面", labels) is None
    assert label_in("不知道", labels) is None
    assert accuracy(["正面", "负面。", "也许", "正面"], ["正面", "负面", "正面", "负面"], labels) == 0.5


def test_without_jieba_an_error_names_the_command() -> None:
    code = (
        "import sys; sys.modules['jieba'] = None\n"
        "from chatglm3.errors import TrainingError\n"
        "from chatglm3.train.metrics import bleu4\n"
        "try: bleu4('a', 'a')\n"
        "except TrainingError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "ROUGE and BLEU need jieba; run pip install 'chatglm3[train]'\n"
