"""The recipe of the bundled models: an honest hold-out, and training rows with the ids that inference uses."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

import pytest

ROOT = Path(__file__).parents[2]
pytest.importorskip("snownlp")
pytest.importorskip("sklearn")
sys.path.insert(0, str(ROOT))

from recipes.nano import judging, small_talk, tool_calls  # noqa: E402
from recipes.nano.conversations import chat_example  # noqa: E402
from recipes.nano.data import GRAM, Review, Split, load_reviews, near_duplicates, split_reviews  # noqa: E402
from recipes.nano.documents import few_shot  # noqa: E402
from recipes.nano.loop import Stage, draw_batches, rate  # noqa: E402
from recipes.nano.teacher import SoftReview  # noqa: E402
from recipes.nano.tokenizer import train_tokenizer  # noqa: E402

from chatglm3.messages import Message  # noqa: E402
from chatglm3.prompt import chat_prompt  # noqa: E402
from chatglm3.tokenizer import Tokenizer  # noqa: E402

REVIEWS = (SoftReview("房间很干净，下次还来", 0.9), SoftReview("屏幕有坏点，很失望", 0.2))


@pytest.fixture(scope="module")
def split() -> Split:
    return split_reviews(load_reviews())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    rng = Random(0)
    texts = [m.content for _ in range(300) for m in small_talk.conversation(rng, "山水花鸟")]
    texts += [f"{m.metadata}\n{m.content}" for _ in range(300) for m in tool_calls.conversation(rng, "山水花鸟")]
    return Tokenizer(train_tokenizer(texts * 3, n_pieces=700))


def test_hold_out_is_2000_rows_that_training_never_sees(split: Split) -> None:
    held_out = {row.key for row in split.held_out}
    assert len(held_out) == 2_000
    assert len(split.train) > 15_000
    assert not held_out & {row.key for row in split.train}
    assert not near_duplicates(split.train[:3_000], split.held_out)


def test_split_does_not_depend_on_the_order_of_the_corpus(split: Split) -> None:
    assert split_reviews(load_reviews()[::-1]).held_out == split.held_out


def test_near_duplicates_share_half_of_the_shorter_text() -> None:
    text = "这是一家非常好的酒店我们全家都很喜欢这里的早餐"
    assert len(text) > 2 * GRAM
    rows = [Review(text + "，补充一句！", "正面"), Review("完全不同的一句话，说的是别的事情", "负面")]
    assert near_duplicates(rows, [Review(text, "正面")]) == {rows[0]}


@pytest.mark.parametrize("seed", range(20))
def test_training_ids_are_the_prompt_that_inference_builds(tokenizer: Tokenizer, seed: int) -> None:
    messages = tool_calls.conversation(Random(seed), "山水花鸟")
    example = chat_example(tokenizer, messages, {})
    for place, message in enumerate(messages):
        if message.role == "assistant":
            prompt = chat_prompt(tokenizer, messages[:place])
            assert list(example.ids[: len(prompt)]) == prompt
            assert example.weights[len(prompt) - 1] == (messages[place - 1].role == "assistant")
            assert example.weights[len(prompt)] == 1
    assert example.ids[-1] == tokenizer.eos_id
    assert example.weights[-1] == 1


def test_a_call_ends_with_the_observation_id_as_target(tokenizer: Tokenizer) -> None:
    messages = [Message("user", "北京天气"), tool_calls.call("北京"), Message("observation", "{}")]
    example = chat_example(tokenizer, messages, {})
    place = list(example.ids).index(tokenizer.observation_id)
    assert example.weights[place] == 1
    assert set(example.weights[place + 1 :]) == {0}


def test_soft_targets_stand_where_the_labels_part(tokenizer: Tokenizer) -> None:
    for seed in range(20):
        messages, certainty = judging.conversation(Random(seed), REVIEWS)
        example = chat_example(tokenizer, messages, certainty)
        assert [target.probability for target in example.soft] == [0.9, 0.8]
        for target, (place, _) in zip(example.soft, certainty.items(), strict=True):
            prompt = chat_prompt(tokenizer, messages[:place])
            other = "负面" if messages[place].content == "正面" else "正面"
            wrong = [*prompt, *tokenizer.encode("\n"), *tokenizer.encode(other)]
            assert list(example.ids[: target.index]) == wrong[: target.index]
            assert target.other == wrong[target.index] != example.ids[target.index]


def test_few_shot_documents_weigh_their_labels(tokenizer: Tokenizer) -> None:
    example = few_shot(tokenizer, REVIEWS, Random(1))
    assert len(example.soft) == 2
    assert all(example.weights[target.index] > 1 for target in example.soft)


def test_batches_are_the_same_after_a_restart(tokenizer: Tokenizer) -> None:
    stage = Stage("test", steps=4, tokens=512)

    def sample(rng: Random) -> object:
        return few_shot(tokenizer, REVIEWS, rng)

    first, again = draw_batches(stage, sample, 1), draw_batches(stage, sample, 1)  # type: ignore[arg-type]
    assert len(first) == 16
    assert all(a.inputs.equal(b.inputs) and a.soft == b.soft for a, b in zip(first, again, strict=True))


def test_learning_rate_warms_up_and_falls() -> None:
    stage = Stage("test", steps=1_000)
    assert rate(stage, 0) < rate(stage, 50) < rate(stage, 100)
    assert rate(stage, 999) < 0.02 * stage.learning_rate
