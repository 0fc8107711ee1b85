from __future__ import annotations

from typing import Any

import pytest

from chatglm3.errors import MessageError
from chatglm3.messages import TOOLS_PROMPT, Message, as_history
from chatglm3.prompt import chat_prompt, message_ids
from chatglm3.tokenizer import Tokenizer
from chatglm3.train.data import IGNORED, TrainingRow, encode_completion, encode_conversation
from golden import golden_json, needs_golden

GOLDEN: dict[str, Any] = golden_json("training.json")
ROWS: list[dict[str, Any]] = GOLDEN.get("rows", [])
RETIRED: list[dict[str, Any]] = GOLDEN.get("retired_kit_rows", [])
PAIRS: list[dict[str, Any]] = golden_json("tokenization.json").get("pair_cases", [])


def with_results(conversation: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The retired kit writes null where a tool's result is missing, which is an error here."""
    return [{"observation": "null", **item} if item["role"] == "tool" else item for item in conversation]


def unpadded(row: dict[str, Any]) -> tuple[list[int], list[int]]:
    """The ids and labels of a retired row without the zeros on its right."""
    ids = row["input_ids"]
    length = len(ids) - next((n for n, i in enumerate(reversed(ids)) if i != 0), len(ids))
    assert set(row["labels"][length:]) <= {IGNORED}
    return ids[:length], row["labels"][:length]


@needs_golden
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"row{row['index']}")
def test_rows_of_the_official_kit(official_tokenizer: Tokenizer, row: dict[str, Any]) -> None:
    ids, labels, *_ = encode_conversation(official_tokenizer, row["conversations"], train_on_observation=True)
    # The official kit cuts a long row anywhere, which can lose the answer and its stop; a row here is whole.
    length = len(row["input_ids"])
    assert (len(ids) > length) == row["truncated"]
    assert ids[:length] == row["input_ids"]
    assert labels[:length] == row["labels"]
    assert (ids[-1], labels[-1]) == (2, IGNORED if row["index"] == 9 else 2)


@needs_golden
@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"row{row['index']}")
def test_evaluation_prompts_of_the_official_kit(official_tokenizer: Tokenizer, row: dict[str, Any]) -> None:
    history = as_history(row["conversations"])
    answers = [n for n, message in enumerate(history) if message.role == "assistant"]
    expected = []
    for n in answers:
        prompt = chat_prompt(official_tokenizer, history[:n], add_generation_prompt=False)
        answer = [*message_ids(official_tokenizer, history[n])[1:], official_tokenizer.eos_id]
        expected.append((prompt, answer))
    for official in row["eval_rows"]:
        prompt, answer = official["input_ids"][:-1], official["output_ids"]
        assert official["input_ids"][-1] == official_tokenizer.assistant_id
        assert any(p[: len(prompt)] == prompt and a[: len(answer)] == answer for p, a in expected)


@needs_golden
@pytest.mark.parametrize("case", GOLDEN.get("errors", []), ids=lambda case: case["case"])
def test_what_the_official_kit_refuses(official_tokenizer: Tokenizer, case: dict[str, Any]) -> None:
    [conversation], [tools] = case["batch"]["conversations"], case["batch"].get("tools", [None])
    if case["exception"] == "NotImplementedError":  # tools and the role `tool` work here
        row = encode_conversation(official_tokenizer, conversation, tools=tools)
        assert set(row.labels) > {IGNORED}
    else:
        with pytest.raises(MessageError, match="unknown role 'bot'"):
            encode_conversation(official_tokenizer, conversation, tools=tools)


@needs_golden
@pytest.mark.parametrize("row", [row for row in RETIRED if row["format"] == "multi-turn"])
def test_conversations_of_the_retired_kit(official_tokenizer: Tokenizer, row: dict[str, Any]) -> None:
    official_ids, official_labels = unpadded(row)
    item = row["item"]
    ids, labels, *_ = encode_conversation(
        official_tokenizer, with_results(item["conversations"]), tools=item.get("tools"), train_on_observation=True
    )
    assert ids[: len(official_ids)] == official_ids
    assert labels[: len(official_ids)] == official_labels
    assert (len(ids) > len(official_ids)) == (len(official_ids) == row["max_seq_length"])


@needs_golden
@pytest.mark.parametrize("row", [row for row in RETIRED if row["format"] == "input-output"])
def test_completions_of_the_retired_kit(official_tokenizer: Tokenizer, row: dict[str, Any]) -> None:
    official_ids, official_labels = unpadded(row)
    ids, labels, *_ = encode_completion(official_tokenizer, row["item"]["prompt"], row["item"]["response"])
    if len(ids) == len(official_ids):
        assert (ids, labels) == (official_ids, official_labels)
    else:  # the official kit cuts prompt and response, each at its end
        given, official_given = labels.count(IGNORED), official_labels.count(IGNORED)
        assert ids[:official_given] == official_ids[:official_given]
        learned = official_ids[official_given:-1]
        assert ids[given : given + len(learned)] == learned
        assert labels[given:] == ids[given:]


@needs_golden
@pytest.mark.parametrize("case", PAIRS, ids=lambda case: str(len(case["call_ids"])))
def test_a_pair_of_texts_is_a_completion(official_tokenizer: Tokenizer, case: dict[str, Any]) -> None:
    assert encode_completion(official_tokenizer, case["text"], case["pair"]).input_ids == case["call_ids"]


@needs_golden
@pytest.mark.parametrize("batch", GOLDEN.get("batches", []), ids=lambda batch: str(batch["rows"]))
def test_rows_pad_to_the_official_batches(official_tokenizer: Tokenizer, batch: dict[str, Any]) -> None:
    rows = []
    for index in batch["rows"]:
        row = encode_conversation(official_tokenizer, ROWS[index]["conversations"], train_on_observation=True)
        rows.append(row.input_ids[: len(ROWS[index]["input_ids"])])
    padded = official_tokenizer.pad(rows, length=len(batch["input_ids"][0]))
    assert padded.input_ids == batch["input_ids"]


def targets(row: TrainingRow) -> list[int]:
    ids, labels, *_ = row
    assert len(ids) == len(labels)
    assert all(label in (IGNORED, i) for i, label in zip(ids, labels, strict=True))
    return [label for label in labels if label != IGNORED]


def test_an_answer_its_header_and_its_stop_are_learned(tiny_tokenizer: Tokenizer) -> None:
    t = tiny_tokenizer
    row = encode_conversation(t, [Message("user", "你好"), Message("assistant", "好")])
    assert row.input_ids == [*chat_prompt(t, [Message("user", "你好")]), *t.encode("\n"), *t.encode("好"), t.eos_id]
    assert targets(row) == [*t.encode("\n"), *t.encode("好"), t.eos_id]


def test_observations_are_not_learned_unless_asked(tiny_tokenizer: Tokenizer) -> None:
    t = tiny_tokenizer
    call, observation = Message("assistant", "x", "get"), Message("observation", "22")
    rows = [encode_conversation(t, (call, observation), train_on_observation=flag) for flag in (False, True)]
    written = [*t.encode("get\n"), *t.encode("x"), t.observation_id]
    assert targets(rows[0]) == written
    assert targets(rows[1]) == [*written, *t.encode("\n"), *t.encode("22"), t.eos_id]
    assert rows[0].input_ids == rows[1].input_ids


def test_loss_false_keeps_an_answer_out(tiny_tokenizer: Tokenizer) -> None:
    conversation = [
        {"role": "user", "content": "a", "loss": True},
        {"role": "assistant", "content": "b", "loss": False},
    ]
    assert targets(encode_conversation(tiny_tokenizer, conversation)) == []
    with pytest.raises(MessageError, match="'loss' must be true or false, not 'false'"):
        encode_conversation(tiny_tokenizer, [{"role": "assistant", "content": "b", "loss": "false"}])


def test_a_tool_item_is_a_call_and_its_result(tiny_tokenizer: Tokenizer) -> None:
    tool = {"role": "tool", "name": "get", "parameters": {"n": -1}, "observation": {"天气": "晴"}}
    row = encode_conversation(tiny_tokenizer, [tool], tools=[])
    messages = (
        Message.system(TOOLS_PROMPT, []),
        Message("assistant", "```python\ntool_call(n=-1)\n```", "get"),
        Message("observation", '{"天气": "晴"}'),
    )
    assert row == encode_conversation(tiny_tokenizer, messages)
    for broken, needed in (
        ({"name": 3}, "a 'name'"),
        ({"name": ""}, "a 'name'"),
        ({"parameters": "n=1"}, "'parameters'"),
    ):
        with pytest.raises(MessageError, match=f"a 'tool' item needs {needed}"):
            encode_conversation(tiny_tokenizer, [{**tool, **broken}])
    without = {key: value for key, value in tool.items() if key != "observation"}
    with pytest.raises(MessageError, match="a 'tool' item needs an 'observation'"):
        encode_conversation(tiny_tokenizer, [without])
    with pytest.raises(MessageError, match="argument name 'my-arg'"):
        encode_conversation(tiny_tokenizer, [{**tool, "parameters": {"my-arg": 1}}])
