"""Whole runs on a tiny model: what they learn, what they leave behind, when they stop, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import chatglm3
from chatglm3.errors import DataError, TrainingError
from chatglm3.model.transformer import ChatGLMModel
from chatglm3.train.data import IGNORED, TrainingRow
from chatglm3.train.dataset import Dataset
from chatglm3.train.loop import train
from chatglm3.train.progress import MetricsLog, Progress
from train.runs import data_file, metrics, settings

TOOLS = [{"name": "get_weather", "parameters": {"city": {"type": "string"}}}]
GREEDY: dict[str, Any] = {"temperature": 0, "max_new_tokens": 80}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return data_file(tmp_path / "train.jsonl", 20)


class Listener:
    """A reporter that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.steps: list[Progress] = []
        self.measurements: list[tuple[int, dict[str, float]]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, now: Progress) -> None:
        self.steps.append(now)

    def measured(self, step: int, found: Any) -> None:
        self.measurements.append((step, dict(found)))


def test_sixteen_rows_are_reproduced_and_every_answer_stops_by_itself(model: Path, tmp_path: Path) -> None:
    pairs = [(f"{i}号房间怎么样？", f"房间{i * 7 % 10}很好，服务{i}也好。") for i in range(15)]
    rows: list[dict[str, Any]] = [
        {"conversations": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]} for q, a in pairs
    ]
    call, sky = {"role": "tool", "name": "get_weather", "parameters": {"city": "北京"}}, {"sky": "晴"}
    asked, told = "北京今天天气怎么样？", "北京今天晴。"
    turns = [{"role": "user", "content": asked}, {**call, "observation": sky}, {"role": "assistant", "content": told}]
    rows.append({"tools": TOOLS, "conversations": turns})
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    changes = {"method": "full", "steps": 320, "batch_size": 16, "learning_rate": 6e-3, "save_every": None}
    result = train(settings(model, file, tmp_path / "out", **changes))
    with chatglm3.load(result.folder) as glm:
        for question, answer in pairs:
            reply = glm.chat(question, **GREEDY)
            assert (reply.text, reply.finish_reason) == (answer, "stop")
        reply = glm.chat(asked, tools=TOOLS, **GREEDY)
        assert reply.finish_reason == "tool_call" and dict(reply.tool_calls[0].arguments or {}) == {"city": "北京"}
        reply = glm.chat(json.dumps(sky, ensure_ascii=False), reply.history, role="observation", **GREEDY)
        assert (reply.text, reply.finish_reason) == (told, "stop")


def test_a_run_leaves_what_can_be_used_and_how_it_went(model: Path, data: Path, tmp_path: Path) -> None:
    listener, output = Listener(), tmp_path / "out"
    validation = data_file(tmp_path / "val.jsonl", 5, first=50)
    files = {"train": str(data), "validation": str(validation), "test": str(validation)}
    result = train(settings(model, data, output, data=files, evaluation={"every": 3}), reporter=listener)
    names = {path.name for path in output.iterdir()}
    assert names >= {"adapter", "checkpoint-6", "loss.svg", "resolved.yaml", "metrics.jsonl"}
    assert not [name for name in names if "incomplete" in name]
    assert result.folder == output / "adapter" and result.steps == 6 and not result.stopped_early
    assert [now.step for now in listener.steps] == [1, 2, 3, 4, 5, 6]
    assert all(now.tokens_per_second > 0 and now.gradient_norm for now in listener.steps)
    assert metrics(output, "loss") == [now.loss for now in listener.steps]
    assert metrics(output, "learning_rate")[:3] == pytest.approx([5e-4, 1e-3, 1e-3])
    assert [step for step, found in listener.measurements if "validation_loss" in found] == [3, 6]
    assert len(metrics(output, "test_loss")) == 1
    assert result.validation_loss == min(metrics(output, "validation_loss"))
    plot = (output / "loss.svg").read_text(encoding="utf-8")
    assert plot.startswith("<svg") and plot.count("<circle") == 2 and "nan" not in plot
    said = "\n".join(listener.notes)
    for words in ("20 chat rows", "lora: ", "numbers are trained", "6 steps of 4 rows, 1.2 epochs", "memory: about"):
        assert words in said
    with chatglm3.load(model, adapter=result.folder) as glm:
        assert glm.chat("今天", **{**GREEDY, "max_new_tokens": 3}).usage.completion_tokens <= 3


def test_the_tuned_model_keeps_the_dtype_of_the_base(model: Path, data: Path, tmp_path: Path) -> None:
    result = train(settings(model, data, tmp_path / "out", method="full", steps=1))
    base, tuned = (load_file(folder / "model.safetensors") for folder in (model, result.folder))
    assert base.keys() == tuned.keys()
    assert all(tuned[name].dtype == base[name].dtype for name in base)
    assert any(not torch.equal(tuned[name], base[name]) for name in base)
    assert (result.folder / "tokenizer.model").is_file()


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "ptuning", "ptuning": {"length": 4}},
        {"quantize": 4, "gradient_checkpointing": True},
        {"dtype": "bfloat16"},
        {"dtype": "bfloat16", "method": "full", "accumulation": 2, "batch_size": 2},
    ],
)
def test_other_ways_to_train_learn_too(changes: dict[str, Any], model: Path, data: Path, tmp_path: Path) -> None:
    rate = {"lora": 3e-2, "ptuning": 0.2, "full": 5e-3}[changes.get("method", "lora")]
    words = {"steps": 20, "batch_size": 20, "learning_rate": rate, "save_every": None, **changes}
    train(settings(model, data, tmp_path / "out", **words))
    losses = metrics(tmp_path / "out", "loss")
    assert losses[-1] < 0.97 * losses[0]


def test_a_run_stops_when_it_gets_no_better_and_keeps_its_best(model: Path, data: Path, tmp_path: Path) -> None:
    files = {"train": str(data), "validation": str(data_file(tmp_path / "val.jsonl", 6, first=90))}
    evaluation = {"every": 2, "patience": 2}
    changes = {"data": files, "evaluation": evaluation, "steps": 400, "learning_rate": 0.3, "schedule": "constant"}
    result = train(settings(model, data, tmp_path / "out", **changes, keep=1, save_every=100))
    losses = metrics(tmp_path / "out", "validation_loss")
    assert result.stopped_early and result.steps < 400 and result.best_step is not None
    assert losses.index(min(losses)) == len(losses) - 3 and result.validation_loss == min(losses)
    assert {path.name for path in (tmp_path / "out").glob("checkpoint-*")} == {
        f"checkpoint-{result.best_step}",
        f"checkpoint-{result.steps}",
    }
    best = tmp_path / "out" / f"checkpoint-{result.best_step}" / "adapter_model.safetensors"
    assert (result.folder / "adapter_model.safetensors").read_bytes() == best.read_bytes()


def test_an_evaluator_adds_its_metrics(model: Path, data: Path, tmp_path: Path) -> None:
    seen: list[ChatGLMModel] = []

    def evaluator(network: ChatGLMModel) -> dict[str, float]:
        assert not network.training
        seen.append(network)
        return {"exact_match": 25.0}

    files = {"train": str(data), "validation": str(data)}
    train(settings(model, data, tmp_path / "out", data=files, evaluation={"every": 3}), evaluator=evaluator)
    assert metrics(tmp_path / "out", "exact_match") == [25.0, 25.0] and len(seen) == 2
    assert seen[0].training


def test_an_evaluator_needs_no_validation_rows_and_may_find_nothing(model: Path, data: Path, tmp_path: Path) -> None:
    listener, found = Listener(), iter((float("nan"), 2.0))
    config = settings(model, data, tmp_path / "out", evaluation={"every": 3})
    result = train(config, evaluator=lambda _: {"score": next(found)}, reporter=listener)
    assert [step for step, _ in listener.measurements] == [3, 6] and result.validation_loss is None
    lines = (tmp_path / "out" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    assert [record["score"] for record in records if "score" in record] == [None, 2.0]
    assert MetricsLog(tmp_path / "out", 6, False).points("score") == [(6, 2.0)]


def test_generated_answers_are_measured_and_kept(model: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("jieba")
    files = {"train": str(data), "validation": str(data), "test": str(data)}
    evaluation = {"every": 3, "generate": True, "rows": 4, "max_new_tokens": 5}
    train(settings(model, data, tmp_path / "out", data=files, evaluation=evaluation))
    for name in ("rouge-l", "bleu-4", "exact_match"):
        assert len(metrics(tmp_path / "out", name)) == 2 and len(metrics(tmp_path / "out", f"test_{name}")) == 1
    kept = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").glob("predictions*/*"))
    assert kept == [
        "predictions-test/predictions-6.jsonl",
        *(f"predictions/predictions-{step}.jsonl" for step in (3, 6)),
    ]
    assert (tmp_path / "out" / kept[0]).read_text(encoding="utf-8").count("\n") == 4


def test_checkpoints_that_stay(model: Path, data: Path, tmp_path: Path) -> None:
    train(settings(model, data, tmp_path / "two", save_every=1))
    assert sorted(path.name for path in (tmp_path / "two").glob("checkpoint-*")) == ["checkpoint-5", "checkpoint-6"]
    train(settings(model, data, tmp_path / "all", keep=None))
    assert len(list((tmp_path / "all").glob("checkpoint-*"))) == 3


def test_the_seed_decides_all(model: Path, data: Path, tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        result = train(settings(model, data, tmp_path / name, seed=seed))
        weights.append((result.folder / "adapter_model.safetensors").read_bytes())
    assert weights[0] == weights[1] != weights[2]


def test_tensorboard_gets_the_same_numbers(model: Path, data: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(settings(model, data, tmp_path / "out", tensorboard=True, steps=2))
    assert list((tmp_path / "out" / "tensorboard").glob("events.*"))


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"data": {"train": "{folder}/nothing.jsonl"}}, OSError, "nothing.jsonl"),
        ({"data": {"train": "{train}", "max_length": 9}}, DataError, "no row can be used"),
        ({"data": {"train": "{train}", "max_length": 4000}}, TrainingError, "max_length=4000 is more than the 1024"),
        ({"data": {"train": "{train}", "kind": "base"}}, DataError, "row 1"),
        ({"data": {"train": "{train}", "validation": "{base}"}}, DataError, "base.jsonl, row 1"),
        ({"data": {"train": "{base}"}}, TrainingError, "base.jsonl: .*if it is meant so, set data.kind=base"),
        ({"model": "{folder}/nowhere"}, chatglm3.ChatGLMError, "nowhere"),
        ({"dtype": "float16"}, TrainingError, "needs a GPU"),
    ],
)
def test_what_cannot_begin_says_why_and_leaves_nothing(
    changes: dict[str, Any], error: type[Exception], said: str, model: Path, data: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base.jsonl"
    base.write_text('{"prompt": "a", "response": "b"}\n', encoding="utf-8")
    words = json.loads(
        json.dumps(changes)
        .replace("{folder}", str(tmp_path))
        .replace("{train}", str(data))
        .replace("{base}", str(base))
    )
    with pytest.raises(error, match=said) as caught:
        train(settings(model, data, tmp_path / "out", **words))
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_data_in_another_encoding(model: Path, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(data.read_text(encoding="utf-8"), encoding="utf-16-be")
    for encoding in ("utf-16-be", "ascii"):
        config = settings(
            model,
            other,
            tmp_path / encoding,
            data={"train": str(other), "encoding": encoding},
            steps=1,
            save_every=None,
        )
        if encoding == "ascii":
            with pytest.raises(DataError, match=r"other\.json"):
                train(config)
        else:
            assert train(config).steps == 1


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no rows to learn"),
        ([TrainingRow([5, 6, 7], [IGNORED] * 3)], "row 1 has no target that counts"),
        ([TrainingRow([5, 6, 7], [5, 6, 7], [0.0] * 3)], "row 1 has no target that counts"),
        ([TrainingRow([5, 6], [5, 6]), TrainingRow([5, 6, 7], [5, 6, 7], [1.0])], "row 2: ids, labels and weights"),
        ([TrainingRow([5] * 1025, [5] * 1025)], "from 2 to 1024"),
        ([TrainingRow([5, 10**6], [5, 10**6])], "row 1 has an id that is none"),
    ],
)
def test_rows_made_in_python_are_checked(rows: list[TrainingRow], said: str, model: Path, tmp_path: Path) -> None:
    config = settings(model, tmp_path, tmp_path / "out", data={"kind": "chat"})
    with pytest.raises(TrainingError, match=said):
        train(config, rows=Dataset("chat", tuple(rows), (), tuple(range(1, len(rows) + 1))))
    assert not (tmp_path / "out").exists()
