from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import chatglm3
from chat_lessons import GREETING, HELLO, SYSTEM, new_glm
from chatglm3.chat import ChatGLM
from chatglm3.errors import ContextLengthError, MessageError, SamplingError
from chatglm3.messages import Message
from chatglm3.prompt import chat_prompt, completion_prompt
from chatglm3.tokenizer import Tokenizer
from tiny_model import tokens_computed

LABELS = ["很好", "今天天气", "北京"]
EXAMPLES = Path(__file__).parents[2] / "examples" / "reviews.jsonl"


@pytest.fixture
def base(taught: ChatGLM) -> ChatGLM:
    """The same network under the name of a Base model."""
    return ChatGLM(taught.model, taught.tokenizer, name="some-base")


def expected(glm: ChatGLM, prompt: list[int], labels: list[list[int]]) -> list[float]:
    """Softmax of the mean log-probability per token behind what all labels begin with, each label computed alone."""
    same = 0
    while len({tuple(label[: same + 1]) for label in labels}) == 1:
        same += 1
    means = [sum(s := glm.engine.score(prompt, [label])[0][same:]) / len(s) for label in labels]
    odds = [math.exp(mean) for mean in means]
    return [odd / sum(odds) for odd in odds]


def test_a_chat_model_is_asked_in_a_conversation(glm: ChatGLM) -> None:
    t = glm.tokenizer
    found = glm.classify(
        "天气", LABELS, system="看天气", examples=[("晴", "很好"), ("雨", "北京")], prompt="这是{text}吗？"
    )
    messages = [Message.system("看天气")]
    for text, label in (("晴", "很好"), ("雨", "北京")):
        messages += [Message("user", f"这是{text}吗？"), Message("assistant", label)]
    prompt = [*chat_prompt(t, [*messages, Message("user", "这是天气吗？")]), *t.encode("\n")]
    values = expected(glm, prompt, [t.encode(label) for label in LABELS])
    assert list(found.probabilities) == LABELS
    assert list(found.probabilities.values()) == pytest.approx(values, abs=1e-5)
    assert sum(found.probabilities.values()) == pytest.approx(1)
    assert found.label == LABELS[values.index(max(values))]
    assert found.margin == pytest.approx(sorted(values)[-1] - sorted(values)[-2], abs=1e-5)


def test_a_base_model_is_asked_in_plain_text(base: ChatGLM) -> None:
    t = base.tokenizer
    found = base.classify("今天", LABELS, system="天气：", examples=[("晴", "很好")], prompt="{text}，")
    prompt = completion_prompt(t, "天气：\n\n晴，很好\n\n今天，")
    values = expected(base, prompt, [t.encode_continuation(label) for label in LABELS])
    assert list(found.probabilities.values()) == pytest.approx(values, abs=1e-5)


def test_the_likeliest_answer_is_the_likeliest_label(glm: ChatGLM) -> None:
    found = glm.classify(HELLO.content, ["今天天气很好。", GREETING.content, "北京今天晴。"])
    assert found.label == GREETING.content
    assert found.margin > 0.5


def test_a_label_that_begins_another_one_counts_its_end(glm: ChatGLM) -> None:
    t = glm.tokenizer
    labels = [GREETING.content[:5], GREETING.content]
    found = glm.classify(HELLO.content, labels)
    assert found.label == GREETING.content  # which goes on where the other would have to end
    assert len(t.encode(labels[0])) < len(t.encode(labels[1]))
    assert glm.classify(HELLO.content, labels[::-1]).probabilities == pytest.approx(found.probabilities)


def test_many_texts_share_what_they_begin_with(glm: ChatGLM) -> None:
    texts = [f"今天{i}度" for i in range(20)]
    one_by_one = [ChatGLM(glm.model, glm.tokenizer).classify(text, LABELS, history=[SYSTEM]) for text in texts]
    with tokens_computed(glm.model) as counts:
        together = glm.classify(texts, LABELS, history=[SYSTEM])
    prompts = sum(one.prompt_tokens for one in together)
    shared = min(one.cached_tokens for one in together)
    assert shared > 10
    assert sum(counts) < prompts - 19 * shared + 20 * 12  # the labels' own tokens are few
    for one, other in zip(together, one_by_one, strict=True):
        assert one.label == other.label
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_calibration_divides_by_what_is_said_of_nothing(glm: ChatGLM) -> None:
    plain = glm.classify("今天", LABELS).probabilities
    nothing = [glm.classify(text, LABELS).probabilities for text in ("N/A", "[MASK]", "无")]
    odds = {label: plain[label] / sum(one[label] for one in nothing) for label in LABELS}
    found = glm.classify("今天", LABELS, calibrate=True).probabilities
    assert found == pytest.approx({label: odd / sum(odds.values()) for label, odd in odds.items()}, abs=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: g.classify("a", []), "at least two labels"),
        (lambda g: g.classify("a", ["b"]), "at least two labels"),
        (lambda g: g.classify("a", "bc"), "labels must be a list of strings, not str"),
        (lambda g: g.classify("a", ["b", "c", "b"]), "labels must differ; b is given twice"),
        (lambda g: g.classify("a", ["b", " "]), "labels must be non-empty strings"),
        (lambda g: g.classify("a", ["b", 3]), "each of labels must be a string, not int"),
        (lambda g: g.classify(5, ["b", "c"]), "text must be a list of strings, not int"),
        (lambda g: g.classify(" \n", ["b", "c"], prompt="判断：{text}"), "^the text is empty$"),
        (lambda g: g.classify("a", ["b", "c"], prompt="判断"), r"the prompt must have \{text\}"),
        (lambda g: g.classify("a", ["b", "c"], examples=[("x", "d")]), "an example is a text and one of the labels"),
        (lambda g: g.classify("a", ["b", "c"], system="x", history=[SYSTEM]), "not both"),
        (lambda g: g.classify("a", ["b", "c"], history="x"), "a history must be a list of messages"),
    ],
)
def test_what_cannot_be_classified(glm: ChatGLM, call: Callable[[Any], Any], message: str) -> None:
    with tokens_computed(glm.model) as counts, pytest.raises(MessageError, match=message):
        call(glm)
    assert counts == []


def test_a_base_model_knows_no_history(base: ChatGLM) -> None:
    with pytest.raises(MessageError, match="give it system= and examples="):
        base.classify("a", ["b", "c"], history=[SYSTEM])


def test_errors_in_place_of_what_failed(tiny_tokenizer: Tokenizer) -> None:
    glm = new_glm(tiny_tokenizer, max_context=60)
    long = "今天天气很好。" * 30
    with pytest.raises(ContextLengthError):
        glm.classify(["今天", long], LABELS)
    labels = glm.classify(["今天", long, "\ud83d", "北京", ""], LABELS, return_errors=True)
    assert str(labels[-1]) == "the text is empty"
    assert [type(one).__name__ for one in labels] == [
        "Classification",
        "ContextLengthError",
        "TokenizerError",
        "Classification",
        "MessageError",
    ]
    with pytest.raises(ContextLengthError, match=r"what is scored behind it takes \d+, .*; shorten the text"):
        glm.classify(long, LABELS)
    replies = glm.chat_batch(["今天", "", long], temperature=0, max_new_tokens=2, return_errors=True)
    assert [type(one).__name__ for one in replies] == ["Reply", "MessageError", "ContextLengthError"]
    texts = glm.complete(["今天", long], temperature=0, max_new_tokens=2, return_errors=True)
    assert [type(one).__name__ for one in texts] == ["Completion", "ContextLengthError"]
    with pytest.raises(SamplingError, match="unknown sampling parameter"):  # no row's own
        glm.chat_batch(["今天"], return_errors=True, temprature=0)  # type: ignore[call-overload]


def test_a_base_model_may_begin_its_label_with_a_space() -> None:
    """nano-base has seen “文字 => 好评”: a prompt that leaves the space to the model asks the same."""
    with chatglm3.load("nano-base") as glm:
        for text in ("房间干净，早餐也好", "屏幕坏了，很失望"):
            asked = [glm.classify(text, ["好评", "差评"], prompt=prompt) for prompt in ("{text} =>", "{text} => ")]
            assert asked[0].probabilities == pytest.approx(asked[1].probabilities, abs=1e-5)


def test_nano_classifies_reviews() -> None:
    rows = [json.loads(line) for line in EXAMPLES.read_text(encoding="utf-8").splitlines()]
    with chatglm3.load("nano") as glm:
        found = glm.classify([row["review"] for row in rows], ["正面", "负面"])
    assert sum(one.label == row["label"] for one, row in zip(found, rows, strict=True)) >= 45
