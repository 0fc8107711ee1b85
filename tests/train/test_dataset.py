"""Data files to training rows: every format, what is dropped, and one clear line for what cannot be used."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from chatglm3.errors import DataError
from chatglm3.messages import Message, as_history, with_tools
from chatglm3.prompt import chat_prompt
from chatglm3.tokenizer import Tokenizer
from chatglm3.train.data import IGNORED, encode_completion, encode_conversation
from chatglm3.train.dataset import NO_TARGET, Dataset, load_dataset, other_kind, prompts_and_targets
from chatglm3.train.formats import TextExample
from golden import golden_json, needs_golden
from test_train_data import with_results

GOLDEN: dict[str, Any] = golden_json("training.json")

USER, ANSWER = {"role": "user", "content": "你好"}, {"role": "assistant", "content": "好。"}
CHAT = {"conversations": [USER, ANSWER]}
PAIRS = [{"prompt": "评论：好吃\n答案：", "response": "正面"}, {"prompt": "评论：太咸\n答案：", "response": "负面"}]

Load: TypeAlias = Callable[..., Dataset]


def write(path: Path, rows: Iterable[object]) -> Path:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def load(tmp_path: Path, tiny_tokenizer: Tokenizer) -> Load:
    """Loads rows by way of a JSONL file, or a file as it is."""

    def call(data: Path | list[Any], *, max_length: int = 1000, **options: Any) -> Dataset:
        path = data if isinstance(data, Path) else write(tmp_path / "data.jsonl", data)
        return load_dataset(path, tiny_tokenizer, max_length=max_length, **options)

    return call


def test_conversations(load: Load, tiny_tokenizer: Tokenizer) -> None:
    data = load([CHAT, {"messages": [USER, ANSWER, USER, {**ANSWER, "loss": False}]}])
    assert (data.kind, data.numbers, data.dropped, data.shortened, data.remarks) == ("chat", (1, 2), {}, (), {})
    assert data.rows[0] == encode_conversation(tiny_tokenizer, [USER, ANSWER])
    learned = [label for label in data.rows[1].labels if label != IGNORED]
    assert learned == [*tiny_tokenizer.encode("\n"), *tiny_tokenizer.encode("好。"), tiny_tokenizer.user_id]


def test_completions_and_plain_text(load: Load, tiny_tokenizer: Tokenizer) -> None:
    data = load([*PAIRS, {"context": "今天", "target": "天气"}, {"text": "这本书写得很好"}])
    assert data.kind == "base"
    assert data.rows[0] == encode_completion(tiny_tokenizer, PAIRS[0]["prompt"], "正面")
    assert data.rows[3] == encode_completion(tiny_tokenizer, "", "这本书写得很好")
    assert data.examples[2:] == (TextExample("今天", "天气"), TextExample("", "这本书写得很好"))


@needs_golden
def test_rows_of_the_official_kit(tmp_path: Path, official_tokenizer: Tokenizer) -> None:
    rows = GOLDEN["rows"]
    path = write(tmp_path / "train.json", [{"conversations": row["conversations"]} for row in rows])
    data = load_dataset(path, official_tokenizer, max_length=100_000, train_on_observation=True)
    assert data.dropped_rows == {NO_TARGET: tuple(row["index"] + 1 for row in rows if row["index"] == 9)}
    for number, row in zip(data.numbers, data.rows, strict=True):
        official = rows[number - 1]
        length = len(official["input_ids"])
        assert row.input_ids[:length] == official["input_ids"]
        assert row.labels[:length] == official["labels"]
        assert row.input_ids[-1] == row.labels[-1] == official_tokenizer.eos_id
    # The official kit cuts off the end of row 11, where its answer is; here its beginning goes.
    limit = len(rows[11]["input_ids"])
    short = load_dataset(path, official_tokenizer, max_length=limit, train_on_observation=True)
    assert 12 in short.shortened
    row = short.rows[short.numbers.index(12)]
    assert len(row.input_ids) <= limit and row.labels[-1] == official_tokenizer.eos_id


@needs_golden
@pytest.mark.parametrize("row", GOLDEN.get("retired_kit_rows", []), ids=lambda row: row["format"])
def test_rows_of_the_retired_kit(tmp_path: Path, official_tokenizer: Tokenizer, row: dict[str, Any]) -> None:
    item = row["item"]
    if row["format"] == "multi-turn":
        item = {**item, "conversations": with_results(item["conversations"])}
    path = write(tmp_path / "train.jsonl", [item])
    data = load_dataset(path, official_tokenizer, max_length=100_000, train_on_observation=True)
    if row["format"] == "input-output":  # the official kit cuts prompt and response, each at its end
        expected = encode_completion(official_tokenizer, row["item"]["prompt"], row["item"]["response"])
        assert (data.kind, data.rows) == ("base", (expected,))
    else:
        length = max(place for place, token_id in enumerate(row["input_ids"], 1) if token_id)  # padded with 0
        assert data.rows[0].input_ids[:length] == row["input_ids"][:length]
        assert data.rows[0].labels[:length] == row["labels"][:length]


def test_tools_stand_where_a_prompt_has_them(load: Load, tiny_tokenizer: Tokenizer) -> None:
    tools = [{"name": "weather"}]
    for system in ([], [{"role": "system", "content": "简短。"}]):
        data = load([{"tools": tools, "messages": [*system, USER, ANSWER]}])
        prompt = chat_prompt(tiny_tokenizer, with_tools(as_history([*system, USER]), tools))
        assert data.rows[0].input_ids[: len(prompt)] == prompt


def test_conversations_in_parquet(load: Load, tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [
        {"messages": [USER, {**ANSWER, "loss": True}]},
        {"messages": [{"role": "system", "content": "a"}, USER, ANSWER]},
    ]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    assert load(tmp_path / "t.parquet").rows == load(rows).rows


def test_rows_without_anything_to_learn_are_dropped_and_counted(load: Load) -> None:
    nothing = [
        {"messages": [USER]},
        {"messages": [USER, {**ANSWER, "loss": False}]},
        {"messages": []},
        {"messages": None},
        {"instruction": "a", "output": None},
    ]
    data = load([CHAT, *nothing])
    assert (data.numbers, data.dropped) == ((1,), {NO_TARGET: 5})
    assert data.dropped_rows == {NO_TARGET: (2, 3, 4, 5, 6)}
    with pytest.raises(
        DataError, match=r"data\.jsonl: no row can be used: 5 with no answer to learn; correct the data$"
    ):
        load(nothing)


def test_rows_that_are_too_long_are_shortened_or_dropped(load: Load, tiny_tokenizer: Tokenizer) -> None:
    long_question = {"messages": [{"role": "user", "content": "天气" * 40}, ANSWER]}
    long_answer = {"messages": [USER, {"role": "assistant", "content": "天气" * 40}]}
    data = load([CHAT, long_question, long_answer], max_length=30)
    assert (data.numbers, data.shortened) == ((1, 2), (2,))
    assert list(data.dropped.values()) == [1]
    assert len(data.rows[1].input_ids) == 30 and data.rows[1].labels[-1] == tiny_tokenizer.eos_id
    with pytest.raises(DataError, match="no row can be used: 2 with more than 8 tokens without any context that can"):
        load([CHAT, long_answer], max_length=8)


def test_plain_text_that_is_too_long_becomes_several_rows(load: Load, tiny_tokenizer: Tokenizer) -> None:
    t, long = tiny_tokenizer, {"text": "今天天气很好。" * 20}
    data = load([{"text": "天气"}, long, {"text": "你好"}], max_length=30)
    pieces = data.numbers.count(2)
    assert pieces > 2 and data.numbers == (1, *[2] * pieces, 3) and data.split == (2,)
    assert (data.dropped, data.shortened, data.remarks) == ({}, (), {})
    assert [row.input_ids[-1] == t.eos_id for row in data.rows] == [True, *[False] * (pieces - 1), True, True]
    texts = [text for _, text in prompts_and_targets(data, t)]
    assert "".join(texts[1:-1]) == long["text"]
    with pytest.raises(DataError, match="1 with more than 7 tokens without any context that can be cut; raise the len"):
        load([long], max_length=7)


def test_what_is_odd_is_remarked_and_learned_all_the_same(load: Load) -> None:
    call = {"role": "assistant", "metadata": "weather", "content": "```python\ntool_call()\n```"}
    interpreter = {"role": "assistant", "metadata": "interpreter", "content": "```python\nimport os\n```"}
    result, tools = {"role": "observation", "content": "晴"}, {"tools": [{"name": "weather"}]}
    rows = [
        CHAT,
        {"messages": [USER, USER, ANSWER]},
        {"messages": [USER, call, result]},
        {"messages": [USER, call, result], "tools": [{"name": "news"}]},
        {"messages": [USER, call, result], **tools},
        {"messages": [USER, interpreter, result], "id": 7},
        {"messages": [USER, {**ANSWER, "content": " "}]},
        {"messages": [{"role": "system", "content": "", **tools}, USER, call, result]},
        {"messages": [USER, call, USER, ANSWER], **tools},
        {"messages": [USER, call, ANSWER], **tools},
        {"messages": [USER, call], **tools},
        {"messages": [USER, {**call, "content": interpreter["content"]}, result], **tools},
    ]
    data = load(rows)
    assert data.numbers == tuple(range(1, 13))
    assert data.remarks == {
        "two user turns in a row": (2,),
        "a tool is called and none is offered": (3,),
        "a tool is called that is not offered": (4,),
        "the field 'id' is not used": (6,),
        "an answer is empty": (7,),
        "a call without a result": (9, 10, 11),
        "a call that is not written as tool_call(name=value)": (12,),
    }


def test_openai_calls_without_a_result_are_remarked(load: Load) -> None:
    calls = [{"id": n, "function": {"name": "weather", "arguments": "{}"}} for n in ("x", "y")]
    result = {"role": "tool", "tool_call_id": "x", "content": "晴"}
    begin, tools = [USER, {"role": "assistant", "tool_calls": calls}], [{"name": "weather"}]
    data = load([{"messages": [*begin, result, ANSWER], "tools": tools}])
    assert data.remarks == {"a call without a result": (1,)}
    data = load([{"messages": [*begin, result, {**result, "tool_call_id": "y"}, ANSWER], "tools": tools}])
    assert data.remarks == {}


BAD_ROWS: list[tuple[bytes, str]] = [
    (b'{"text": "a"}\n{"q": "a"}\n', r"t\.jsonl, row 2: its fields \('q'\) are those of no known shape"),
    (b'{"text": "a"}\n{"messages": []}\n', r"row 2: it is a conversation, and the rows before it are plain"),
    (b'{"messages": []}\n{"text": "a"}\n', r"row 2: it is plain text, and the rows before it are convers"),
    (b'{"text": "\\ud83d"}\n', r"t\.jsonl, row 1: the text has a lone surrogate"),
]


@pytest.mark.parametrize(("content", "problem"), BAD_ROWS, ids=lambda value: str(value)[:30])
def test_a_row_that_cannot_be_used_is_one_clear_line(load: Load, tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "t.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=problem) as caught:
        load(tmp_path / "t.jsonl")
    assert "\n" not in str(caught.value)


def test_the_kind_that_is_asked_for(load: Load) -> None:
    assert load([CHAT], kind="chat").kind == "chat" and load(PAIRS, kind="base").kind == "base"
    with pytest.raises(DataError, match="row 1: it is a conversation, and the rows must be plain text; give rows with"):
        load([CHAT], kind="base")
    with pytest.raises(DataError, match="row 1: it is plain text, and the rows must be conversations; name the column"):
        load(PAIRS, kind="chat")
    assert other_kind("chat", chat_model=True, model="m") is other_kind("base", chat_model=False, model="m") is None
    assert "the data are conversations, and m is a Base model" in str(other_kind("chat", chat_model=False, model="m"))


def test_prompts_and_texts_of_answers(load: Load, tiny_tokenizer: Tokenizer) -> None:
    t = tiny_tokenizer
    tools = [{"name": "weather"}]
    call = Message("assistant", "```python\ntool_call(city='北京')\n```", "weather")
    messages = [
        USER,
        {"role": "assistant", "content": "好。", "loss": False},
        USER,
        {"role": "assistant", "content": "我查一下。"},
        call.to_dict(),
        {"role": "observation", "content": "晴"},
        {"role": "assistant", "content": " 晴。\n"},
    ]
    history = with_tools(as_history(messages), tools)
    for on_observation in (False, True):
        data = load([{"messages": messages, "tools": tools}, CHAT], train_on_observation=on_observation)
        first, second, third = prompts_and_targets(data, t)
        assert first[0] == chat_prompt(t, history[:4])
        assert first[1].startswith("我查一下。") and first[1].endswith(call.content)
        assert second == (chat_prompt(t, history[:7]), "晴。")
        assert third == (chat_prompt(t, [Message("user", "你好")]), "好。")


def test_prompts_and_texts_of_completions(load: Load, tiny_tokenizer: Tokenizer) -> None:
    expected = [(encode_completion(tiny_tokenizer, row["prompt"], "").input_ids[:-1], row["response"]) for row in PAIRS]
    assert [
        (ids[: len(p)], text)
        for (ids, text), (p, _) in zip(prompts_and_targets(load(PAIRS), tiny_tokenizer), expected, strict=True)
    ] == expected
