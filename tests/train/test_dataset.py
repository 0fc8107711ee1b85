"""Data files to training rows: every format, what is dropped, and one clear line for what cannot be used."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from chatglm3.errors import DataError
from chatglm3.messages import Message, as_history, with_tools
from chatglm3.prompt import chat_prompt
from chatglm3.tables import write_rows
from chatglm3.tokenizer import Tokenizer
from chatglm3.train.data import IGNORED, encode_completion, encode_conversation
from chatglm3.train.dataset import NO_TARGET, Dataset, load_dataset, other_kind, prompts_and_targets
from chatglm3.train.formats import TextExample
from golden import golden_json, needs_golden

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
    path = write(tmp_path / "train.jsonl", [row["item"]])
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


def as_json_array(path: Path) -> None:
    path.write_text(json.dumps(PAIRS, ensure_ascii=False, indent=1), encoding="utf-8-sig")


def as_gzip_array(path: Path) -> None:
    path.write_bytes(gzip.compress(json.dumps(PAIRS).encode()))


def as_lines(path: Path) -> None:
    write(path, PAIRS)


def as_csv(path: Path, encoding: str = "utf-8-sig") -> None:
    with path.open("w", encoding=encoding, newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["prompt", "response"])
        writer.writerows(row.values() for row in PAIRS)


def as_gbk_csv(path: Path) -> None:
    as_csv(path, "gbk")


def as_parquet(path: Path) -> None:
    pytest.importorskip("pyarrow")
    write_rows(path, [dict(row) for row in PAIRS], {"prompt": "text", "response": "text"})


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("t.json", as_json_array),
        ("t.json.gz", as_gzip_array),
        ("t.json", as_lines),
        ("t.jsonl", as_lines),
        ("t.csv", as_csv),
        ("t.csv", as_gbk_csv),
        ("t.parquet", as_parquet),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_every_format_gives_the_same_rows(load: Load, tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    expected = load(PAIRS)
    make(tmp_path / name)
    data = load(tmp_path / name)
    assert (data.rows, data.examples, data.remarks) == (expected.rows, expected.examples, {})


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
    with pytest.raises(DataError, match=r"data\.jsonl: no row can be used: 5 with no answer to learn; correct"):
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
    with pytest.raises(DataError, match="no row can be used"):
        load([{"text": "天气" * 40}], max_length=30)


def test_what_is_odd_is_remarked_and_learned_all_the_same(load: Load) -> None:
    call = {"role": "assistant", "metadata": "weather", "content": "```python\ntool_call()\n```"}
    interpreter = {"role": "assistant", "metadata": "interpreter", "content": "```python\n1\n```"}
    rows = [
        CHAT,
        {"messages": [USER, USER, ANSWER]},
        {"messages": [USER, call]},
        {"messages": [USER, call], "tools": [{"name": "news"}]},
        {"messages": [USER, call], "tools": [{"name": "weather"}]},
        {"messages": [USER, interpreter], "id": 7},
        {"messages": [USER, {**ANSWER, "content": " "}]},
        {"messages": [{"role": "system", "content": "", "tools": [{"name": "weather"}]}, USER, call]},
    ]
    data = load(rows)
    assert data.numbers == tuple(range(1, 9))
    assert data.remarks == {
        "two user turns in a row": (2,),
        "a tool is called and none is offered": (3,),
        "a tool is called that is not offered": (4,),
        "the field 'id' is not used": (6,),
        "an answer is empty": (7,),
    }


BAD_FILES: list[tuple[str, bytes, str]] = [
    ("t.jsonl", b"", r"t\.jsonl has no rows"),
    ("t.json", b" \n", r"t\.json has no rows"),
    ("t.json", b"[]", r"t\.json has no rows"),
    ("t.csv", b"prompt,response\n", r"t\.csv has no rows"),
    ("t.jsonl", b'{"text": "a"}\n{"text": \n', r"t\.jsonl, line 2 is not JSON: "),
    ("t.json", b'{"text": "a"}\n{"text": \n', r"t\.json, line 2 is not JSON: "),
    ("t.json", b'[\n{"text": "a"},\n{"text": }\n]', r"t\.json, line 3 is not JSON: Expecting value \(column 10\)"),
    ("t.json", b'[{"text": "a"},', r"t\.json, line 1 is not JSON"),
    ("t.json", b'[{"text": "a"}, 3]', r"t\.json, row 2 is not a JSON object but 3"),
    ("t.json", b"[" * 100_000, r"t\.json.* nested too deeply|t\.json, line 1 is not JSON"),
    ("t.json", b'[\n{"text": "\xc4\xe3"}]', r"t\.json, line 2 is not UTF-8"),
    ("t.jsonl", b'{"text": "a"}\n{"q": "a"}\n', r"t\.jsonl, row 2: its fields \('q'\) are those of no known shape"),
    ("t.jsonl", b'{"text": "a"}\n{"messages": []}\n', r"row 2: it is a conversation, and the rows before it are plain"),
    ("t.jsonl", b'{"messages": []}\n{"text": "a"}\n', r"row 2: it is plain text, and the rows before it are convers"),
    ("t.jsonl", b'{"text": "\\ud83d"}\n', r"t\.jsonl, row 1: the text has a lone surrogate"),
    ("t.txt", b"a", r"t\.txt: a table is \.jsonl"),
]


@pytest.mark.parametrize(("name", "content", "problem"), BAD_FILES, ids=lambda value: str(value)[:30])
def test_a_file_that_cannot_be_used_is_one_clear_line(
    load: Load, tmp_path: Path, name: str, content: bytes, problem: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=problem) as caught:
        load(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(load: Load, tmp_path: Path) -> None:
    for name in ("t.json", "t.jsonl"):
        with pytest.raises(FileNotFoundError):
            load(tmp_path / name)


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
