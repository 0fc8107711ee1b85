"""The comparison on the bundled models: each number is what the public calls give."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

import chatglm3
from chatglm3.errors import AdapterError, ChatGLMError, DataError, MessageError
from chatglm3.evaluate import Question, Report, Sample, compare
from chatglm3.evaluate.data import draw_examples
from chatglm3.prompt import chat_prompt, completion_prompt
from evaluate.reviews import LABELS, QUESTION, SYSTEM

SHOTS = (("房间很干净。", "正面"), ("屏幕有坏点。", "负面"))


@pytest.mark.parametrize("examples", [(), SHOTS])
def test_free_answers_are_asked_with_the_prompts_of_label_scoring(
    bundled: chatglm3.ChatGLM, examples: tuple[tuple[str, str], ...]
) -> None:
    task = QUESTION.task(chat=bundled.capabilities.chat, examples=examples)
    ids, tokenizer = task.prompt(bundled.tokenizer, "很好看。"), bundled.tokenizer
    if task.chat:
        messages = (*task.conversation(), chatglm3.Message("user", task.fill("很好看。")))
        assert ids == [*chat_prompt(tokenizer, messages), *tokenizer.encode("\n")]
    else:
        assert ids == completion_prompt(tokenizer, task.plain_text("很好看。"))


def test_each_kind_has_its_own_wording() -> None:
    plain = Question(LABELS)
    chat, base = plain.task(chat=True), plain.task(chat=False)
    assert chat.system == base.system and chat.system is not None and "正面、负面" in chat.system
    assert (chat.template, base.template) == ("{text}", "{text}\n答案：")
    own = Question(LABELS, "a", "b{text}", "", "c{text}")
    assert (own.task(chat=True).system, own.task(chat=True).template) == ("a", "b{text}")
    assert (own.task(chat=False).system, own.task(chat=False).template) == (None, "c{text}")
    assert Question(LABELS, system="").task(chat=True).system is None


@pytest.mark.parametrize("wrong", [{"labels": ("正面",)}, {"prompt": "no text"}, {"base_prompt": "no text"}])
def test_a_question_that_cannot_be_asked_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(MessageError):
        replace(QUESTION, **wrong)  # type: ignore[arg-type]


def test_both_models_have_every_way_of_asking(report: Report) -> None:
    ways = [(0, "scoring", ()), (0, "generation", ()), (2, "scoring", (0, 1)), (2, "generation", (0, 1))]
    for model in report.models:
        assert [(c.shots, c.method, c.seeds) for c in model.conditions] == ways
        for condition in model.conditions:
            assert all(len(found) == report.rows == 10 for found in condition.predicted)
            assert sum(map(sum, condition.confusion)) == 10 * len(condition.predicted)
            assert (condition.accuracy.deviation is None) == (condition.shots == 0)
            assert (condition.calibration is None) == (condition.method == "generation")
            assert condition.seconds > 0 and condition.prompt_tokens >= condition.computed_tokens > 0
            assert (condition.completion_tokens > 0) == (condition.method == "generation")
            assert condition.failed == 0
    assert [model.kind for model in report.models] == ["Chat", "Base"]
    assert len(report.differences) == 4 and all(found.rows == 10 for found in report.differences)
    assert sum(report.label_counts.values()) == 10


def test_label_scoring_is_what_classify_says(report: Report, sample: Sample) -> None:
    texts, truth = [row.text for row in sample.test], [LABELS.index(row.label) for row in sample.test]
    assert list(report.truth) == truth and list(report.row_numbers) == [row.row for row in sample.test]
    with chatglm3.load("nano") as glm:
        zero = glm.classify(texts, LABELS, system=SYSTEM)
        shots = draw_examples(sample, LABELS, 2, 1)
        few = glm.classify(texts, LABELS, system=SYSTEM, examples=shots)
    found = report.models[0].conditions
    assert [LABELS[i] for i in found[0].predicted[0]] == [result.label for result in zero]
    assert [LABELS[i] for i in found[2].predicted[1]] == [result.label for result in few]
    right = sum(result.label == row.label for result, row in zip(zero, sample.test, strict=True))
    assert found[0].accuracy.mean == right / 10
    assert found[0].prompt_tokens == sum(result.prompt_tokens for result in zero) / 10


def test_free_generation_is_what_the_models_say(report: Report, sample: Sample) -> None:
    texts = [row.text for row in sample.test]
    with chatglm3.load("nano") as glm:
        said = [glm.chat(text, [chatglm3.Message.system(SYSTEM)], temperature=0).text.strip() for text in texts]
    with chatglm3.load("nano-base") as glm:
        prompts = [f"问题：这条评论是正面还是负面？{text}\n答案：" for text in texts]
        went_on = [c.text.strip() for c in glm.complete(prompts, stop=["\n"], temperature=0, max_new_tokens=16)]
    for model, answers in zip(report.models, (said, went_on), strict=True):
        expected = tuple(LABELS.index(answer) if answer in LABELS else -1 for answer in answers)
        condition = model.conditions[1]
        assert condition.predicted == (expected,)
        assert condition.invalid == sum(label < 0 for label in expected) / 10


def test_the_prompts_of_the_report_are_finished(report: Report, sample: Sample) -> None:
    (chat_zero, chat_few), (base_zero, base_few) = (model.prompts for model in report.models)
    for prompt in (chat_zero, chat_few, base_zero, base_few):
        assert prompt.text.startswith("[gMASK]sop") and sample.test[0].text in prompt.text
    assert chat_zero.text.count("<|user|>") == 1 and chat_few.text.count("<|user|>") == 3
    assert "<|" not in base_few.text and base_few.text.count("答案：") == 3


def test_one_model_alone_is_measured_but_not_compared(sample: Sample) -> None:
    told: list[tuple[str, int, int]] = []
    report = compare(
        sample, QUESTION, base="nano-base", examples=0, shown_text="好", progress=lambda *step: told.append(step)
    )
    assert [c.shots for c in report.models[0].conditions] == [0, 0] and report.differences == ()
    assert "？好" in report.models[0].prompts[0].text
    assert told[-1][1:] == (20, 20) and [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert {step for step, *_ in told} >= {"loading nano-base", "Base, zero-shot, label scoring"}


def test_the_same_again_gives_the_same(report: Report, sample: Sample) -> None:
    again = compare(sample, QUESTION, chat="nano", base="nano-base", examples=2, seeds=2)
    assert again.differences == report.differences
    for one, other in zip(again.models, report.models, strict=True):
        assert [c.predicted for c in one.conditions] == [c.predicted for c in other.conditions]


def test_a_row_that_does_not_fit_is_wrong_and_told(sample: Sample) -> None:
    rows = (replace(sample.test[0], text="很好看。" * 400), *sample.test[1:4])
    report = compare(
        replace(sample, test=rows),
        QUESTION,
        chat="nano",
        examples=0,
        load=lambda name: chatglm3.load(name, max_context=256),
    )
    for condition in report.models[0].conditions:
        assert condition.failed == 1 and condition.predicted[0][0] == -1
        assert condition.invalid == 0.25 and "context" in str(condition.first_error)
    assert asdict(report)["models"][0]["conditions"][0]["failed"] == 1


def test_a_row_without_text_is_wrong_in_every_way_and_told(sample: Sample) -> None:
    rows = (replace(sample.test[0], text=""), *sample.test[1:4])
    report = compare(replace(sample, test=rows), QUESTION, chat="nano", base="nano-base", examples=0)
    for model in report.models:
        for condition in model.conditions:
            assert (condition.failed, condition.first_error) == (1, "the text is empty")
            assert [found[0] for found in condition.predicted] == [-1] and condition.invalid == 0.25
        assert rows[1].text in model.prompts[0].text
    with pytest.raises(MessageError, match="the text is empty"):
        compare(replace(sample, test=rows[:1]), QUESTION, chat="nano", examples=0)


def test_an_adapter_is_measured_on_its_model(sample: Sample, lora: Path, prefix: Path) -> None:
    question = replace(QUESTION, system="")
    report = compare(
        sample, question, chat="nano", chat_adapter=lora, base="nano-base", base_adapter=prefix, examples=0
    )
    texts = [row.text for row in sample.test]
    for model, adapter in zip(report.models, (lora, prefix), strict=True):
        assert (model.adapter, model.title) == (str(adapter), f"{model.kind} with adapter")
        chat = model.kind == "Chat"
        with chatglm3.load(model.name, adapter=adapter) as glm:
            prompt = None if chat else question.base_prompt
            wanted = [LABELS.index(found.label) for found in glm.classify(texts, LABELS, prompt=prompt)]
            assert glm.engine.fingerprint() in model.about
        assert model.conditions[0].predicted == (tuple(wanted),)
        with chatglm3.load(model.name) as glm:
            bare = [LABELS.index(found.label) for found in glm.classify(texts, LABELS, prompt=prompt)]
            assert glm.engine.fingerprint() not in model.about
        assert bare != wanted  # or this would show nothing


def test_a_model_alone_with_an_adapter_is_measured_without_it_too(report: Report, sample: Sample, lora: Path) -> None:
    found = compare(sample, QUESTION, chat="nano", chat_adapter=lora, examples=2, seeds=2)
    assert [(model.kind, model.name, model.adapter) for model in found.models] == [
        ("Chat", "nano", str(lora)),
        ("Chat", "nano", None),
    ]
    tuned, bare = (model.conditions for model in found.models)
    assert [c.predicted for c in bare] == [c.predicted for c in report.models[0].conditions]
    assert [c.predicted for c in tuned] != [c.predicted for c in bare]
    assert found.models[1].about == report.models[0].about != found.models[0].about
    for difference, first, second in zip(found.differences, tuned, bare, strict=True):
        assert difference.value == pytest.approx(first.accuracy.mean - second.accuracy.mean)


def test_an_adapter_that_is_none_is_refused(sample: Sample, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no adapter"):
        compare(sample, QUESTION, chat="nano", chat_adapter=tmp_path, examples=0)
    with pytest.raises(MessageError, match="adapter for a Base model, and none is named"):
        compare(sample, QUESTION, chat="nano", base_adapter=tmp_path, examples=0)


def test_what_cannot_be_measured_is_refused(sample: Sample) -> None:
    with pytest.raises(MessageError, match="no model"):
        compare(sample, QUESTION)
    with pytest.raises(MessageError, match="nano-base is a Base model"):
        compare(sample, QUESTION, chat="nano-base")
    with pytest.raises(DataError, match=r"too few rows for 50 examples.*\(here: 12\); ask for fewer \(--examples 12\)"):
        compare(sample, QUESTION, chat="nano", examples=50)
    with pytest.raises(ChatGLMError, match="context"):
        compare(sample, QUESTION, chat="nano", load=lambda name: chatglm3.load(name, max_context=16))


def test_a_sample_without_rows_is_refused() -> None:
    with pytest.raises(DataError, match="no rows to measure"):
        compare(Sample.of([]), Question(("正面", "负面")), base="nano-base", examples=0)
