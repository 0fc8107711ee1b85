"""Generated answers of a model in training: what they score, where they are kept, and what training notices of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("jieba")

from chatglm3.errors import TrainingError
from chatglm3.messages import Message
from chatglm3.model.transformer import ChatGLMModel
from chatglm3.prompt import chat_prompt, message_ids
from chatglm3.tokenizer import Tokenizer
from chatglm3.train.batches import pack
from chatglm3.train.evaluation import Examples, GenerationEvaluator, generate_predictions
from chatglm3.train.methods import prepare_model
from tiny_model import greedy, teach, tiny_config, tiny_model
from train.runs import config_of, gradients, loss_of, random_rows

HELLO, ANSWER = "你好", "今天天气很好，我们去北京。"
ASK, LABEL, OTHER = "房间太小了", "负面", "正面"


def prompt_of(tokenizer: Tokenizer, question: str) -> list[int]:
    return chat_prompt(tokenizer, (Message("user", question),))


@pytest.fixture(scope="module")
def model(tiny_tokenizer: Tokenizer) -> ChatGLMModel:
    """It answers the two questions and stops."""
    model = tiny_model(tiny_config(tiny_tokenizer.vocab_size))
    lessons = [
        (
            prompt_of(tiny_tokenizer, question),
            [*message_ids(tiny_tokenizer, Message("assistant", answer))[1:], tiny_tokenizer.user_id],
        )
        for question, answer in ((HELLO, ANSWER), (ASK, LABEL))
    ]
    teach(model, lessons)
    return model


def examples_of(tokenizer: Tokenizer, *pairs: tuple[str, str]) -> Examples:
    return [(prompt_of(tokenizer, question), reference) for question, reference in pairs]


def modes(model: ChatGLMModel) -> list[bool]:
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("rows", [1, 2, 51])
def test_any_number_of_rows_is_answered_and_scored(model: ChatGLMModel, tiny_tokenizer: Tokenizer, rows: int) -> None:
    pairs = [(HELLO, ANSWER), (ASK, "这本书写得很好")] * rows
    found = generate_predictions(model, tiny_tokenizer, examples_of(tiny_tokenizer, *pairs[:rows]), 60)
    assert [row.prediction for row in found.rows] == [ANSWER if i % 2 == 0 else LABEL for i in range(rows)]
    right = (rows + 1) // 2 / rows
    assert found.scores["exact_match"] == pytest.approx(right)
    assert found.scores["rouge-l"] == pytest.approx(100 * right)
    assert found.scores["bleu-4"] == pytest.approx(right)
    assert found.scores["stopped"] == 1
    assert found.rows[0].prompt.endswith("<|user|> \n 你好<|assistant|>")


def test_labels_give_an_accuracy(model: ChatGLMModel, tiny_tokenizer: Tokenizer) -> None:
    examples = examples_of(tiny_tokenizer, (ASK, LABEL), (ASK, LABEL), (ASK, LABEL), (ASK, OTHER))
    assert generate_predictions(model, tiny_tokenizer, examples, 20).scores["accuracy"] == 0.75
    assert "accuracy" not in generate_predictions(model, tiny_tokenizer, examples[:1], 20).scores


def test_an_answer_that_does_not_end_is_cut_and_counted(model: ChatGLMModel, tiny_tokenizer: Tokenizer) -> None:
    examples = examples_of(tiny_tokenizer, (HELLO, ANSWER))
    found = generate_predictions(model, tiny_tokenizer, examples, 4)
    assert (found.scores["stopped"], found.rows[0].stopped) == (0, False)
    assert ANSWER.startswith(found.rows[0].prediction)
    long = [([*examples[0][0], *[5] * (model.config.seq_length - len(examples[0][0]) - 2)], ANSWER)]
    assert not generate_predictions(model, tiny_tokenizer, long, 40).rows[0].stopped  # two tokens have room


def test_an_empty_answer_scores_nothing(tiny_tokenizer: Tokenizer) -> None:
    model = tiny_model(tiny_config(tiny_tokenizer.vocab_size))
    prompt = prompt_of(tiny_tokenizer, HELLO)
    teach(model, [(prompt, [tiny_tokenizer.eos_id])])
    found = generate_predictions(model, tiny_tokenizer, [(prompt, ANSWER)], 10)
    assert found.rows[0].prediction == ""
    assert dict(found.scores) == dict.fromkeys(("rouge-1", "rouge-2", "rouge-l", "bleu-4", "exact_match"), 0) | {
        "stopped": 1
    }


def test_predictions_are_kept(model: ChatGLMModel, tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    names = iter(("first.jsonl", "second.jsonl"))
    examples = examples_of(tiny_tokenizer, (HELLO, ANSWER), (ASK, OTHER))
    evaluator = GenerationEvaluator(
        tiny_tokenizer, examples, max_new_tokens=60, file=lambda: tmp_path / "predictions" / next(names)
    )
    scores = evaluator(model)
    evaluator(model)
    texts = [(tmp_path / "predictions" / name).read_text("utf-8") for name in ("first.jsonl", "second.jsonl")]
    assert texts[0] == texts[1] and "今天天气" in texts[0]
    lines = [json.loads(line) for line in texts[0].splitlines()]
    assert [(line["reference"], line["prediction"]) for line in lines] == [(ANSWER, ANSWER), (OTHER, LABEL)]
    for name in ("rouge-1", "rouge-2", "rouge-l", "bleu-4", "exact_match"):
        assert sum(line[name] for line in lines) / 2 == pytest.approx(scores[name])


@pytest.mark.parametrize("method", ["lora", "ptuning", "full"])
def test_training_does_not_notice(method: Any, tiny_tokenizer: Tokenizer) -> None:
    """Modes, weights and the gradients of the next step are those of a run without an evaluation before it."""
    config = config_of(method=method, lora={"dropout": 0.5})
    examples = examples_of(tiny_tokenizer, (HELLO, ANSWER), (ASK, LABEL))
    rows = random_rows(tiny_tokenizer.vocab_size, (12, 9))
    found = []
    for evaluate in (True, False):
        model = tiny_model(tiny_config(tiny_tokenizer.vocab_size))
        prepare_model(model, config)
        model.blocks[0].eval()
        before = modes(model), {name: weight.clone() for name, weight in model.state_dict().items()}
        if evaluate:
            GenerationEvaluator(tiny_tokenizer, examples, max_new_tokens=8)(model)
        assert modes(model) == before[0]
        assert all(torch.equal(weight, before[1][name]) for name, weight in model.state_dict().items())
        torch.manual_seed(1)
        loss_of(model, pack(rows, (0, 1), torch.device("cpu"))).backward()
        found.append(gradients(model))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_the_weights_of_now_are_measured(tiny_tokenizer: Tokenizer) -> None:
    """In evaluation mode: with the dropout of LoRA the answers would be others."""
    model = tiny_model(tiny_config(tiny_tokenizer.vocab_size))
    prepare_model(model, config_of(lora={"dropout": 0.9}))
    examples = examples_of(tiny_tokenizer, (HELLO, ANSWER))
    answers = []
    for scale in (0.0, 1.0, 2.0):
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name.endswith("lora_B"):
                    weight.fill_(scale)
        answers.append(generate_predictions(model, tiny_tokenizer, examples, 8).rows[0].prediction)
        ids = greedy(model.eval(), examples[0][0], 8, tiny_tokenizer.vocab_size)
        assert answers[-1] == tiny_tokenizer.decode(_until_stop(ids, tiny_tokenizer), skip_special_tokens=True).strip()
        model.train()
    assert len(set(answers)) > 1


def _until_stop(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    return ids[: next((i for i, token in enumerate(ids) if token in tokenizer.stop_ids), len(ids))]


def test_nothing_to_compare_is_an_error(tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(TrainingError, match="targets"):
        GenerationEvaluator(tiny_tokenizer, [])
