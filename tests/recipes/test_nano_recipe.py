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
from recipes.nano.conversations import chat_row  # noqa: E402
from recipes.nano.data import GRAM, Review, Split, load_reviews, near_duplicates, split_reviews  # noqa: E402
from recipes.nano.documents import few_shot  # noqa: E402
from recipes.nano.teacher import SoftReview  # noqa: E402
from recipes.nano.tokenizer import train_tokenizer  # noqa: E402
from recipes.nano.train import Stage, network, random_model, run_stage  # noqa: E402

import chatglm3  # noqa: E402
from chatglm3.messages import Message  # noqa: E402
from chatglm3.model.config import ModelConfig  # noqa: E402
from chatglm3.model.saving import save_model  # noqa: E402
from chatglm3.prompt import chat_prompt  # noqa: E402
from chatglm3.tokenizer import Tokenizer  # noqa: E402
from chatglm3.train.data import IGNORED  # noqa: E402

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
    row = chat_row(tokenizer, messages, {})
    for place, message in enumerate(messages):
        if message.role == "assistant":
            prompt = chat_prompt(tokenizer, messages[:place])
            assert row.input_ids[: len(prompt)] == prompt
            assert (row.labels[len(prompt) - 1] != IGNORED) == (messages[place - 1].role == "assistant")
            assert row.labels[len(prompt)] == row.input_ids[len(prompt)]
    assert row.input_ids[-1] == row.labels[-1] == tokenizer.eos_id


def test_a_call_ends_with_the_observation_id_as_target(tokenizer: Tokenizer) -> None:
    messages = [Message("user", "北京天气"), tool_calls.call("北京"), Message("observation", "{}")]
    row = chat_row(tokenizer, messages, {})
    place = row.input_ids.index(tokenizer.observation_id)
    assert row.labels[place] == tokenizer.observation_id
    assert set(row.labels[place + 1 :]) == {IGNORED}


def test_soft_targets_stand_where_the_labels_part(tokenizer: Tokenizer) -> None:
    for seed in range(20):
        messages, certainty = judging.conversation(Random(seed), REVIEWS)
        row = chat_row(tokenizer, messages, certainty)
        assert [target.probability for target in row.soft] == [0.9, 0.8]
        for target, (place, _) in zip(row.soft, certainty.items(), strict=True):
            prompt = chat_prompt(tokenizer, messages[:place])
            other = "负面" if messages[place].content == "正面" else "正面"
            wrong = [*prompt, *tokenizer.encode("\n"), *tokenizer.encode(other)]
            assert row.input_ids[: target.position] == wrong[: target.position]
            assert target.other == wrong[target.position] != row.input_ids[target.position]


def test_few_shot_documents_weigh_their_labels(tokenizer: Tokenizer) -> None:
    row = few_shot(tokenizer, REVIEWS, Random(1))
    assert len(row.soft) == 2 and row.weights is not None
    assert all(row.weights[target.position] > 1 for target in row.soft)


def test_a_stage_is_a_run_of_the_trainer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """From random weights to a model in the official layout; a second call finds it done."""
    begin = tmp_path / "random"
    save_model(random_model(network(tokenizer)).half(), begin)
    (begin / "tokenizer.model").write_bytes(tokenizer.model_bytes)
    stage = Stage("nano", "base", steps=12, rows=4, learning_rate=5e-3)
    folder = run_stage(stage, lambda rng: few_shot(tokenizer, REVIEWS, rng), begin, tmp_path)
    first = (folder / "model.safetensors").read_bytes()
    assert ModelConfig.from_pretrained(folder).to_dict() == ModelConfig.from_pretrained(begin).to_dict()
    prompt = "评论：房间很干净\n评价："
    with chatglm3.load(begin) as before, chatglm3.load(folder) as after:
        assert sum(after.score(prompt, ["好评", "差评"])) > sum(before.score(prompt, ["好评", "差评"]))
    again = run_stage(stage, lambda rng: few_shot(tokenizer, REVIEWS, rng), begin, tmp_path)
    assert (again / "model.safetensors").read_bytes() == first
