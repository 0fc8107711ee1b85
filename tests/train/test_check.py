"""What a check of a data file finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from chatglm3.tokenizer import Tokenizer
from chatglm3.train.check import contradictions, duplicates, histogram, measure, overlap, spell
from chatglm3.train.data import IGNORED, encode_conversation
from chatglm3.train.dataset import Dataset, load_dataset


def pair(prompt: str, response: str) -> dict[str, str]:
    return {"prompt": prompt, "response": response}


def dialogue(*texts: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]}


def load(tmp_path: Path, tokenizer: Tokenizer, *rows: dict[str, Any]) -> Dataset:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return load_dataset(path, tokenizer, max_length=1000)


def test_lengths(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    data = load(tmp_path, tiny_tokenizer, *(pair("a" * n, "b") for n in range(1, 21)))
    found = measure(data)
    sizes = sorted(len(row.input_ids) for row in data.rows)
    assert (found.tokens, found.median, found.longest) == (sum(sizes), sizes[10], sizes[-1])
    assert sum(size <= found.most_up_to for size in sizes) >= 19
    assert found.targets == sum(label != IGNORED for row in data.rows for label in row.labels)


@given(lengths=st.lists(st.integers(1, 200_000), min_size=1, max_size=50))
def test_a_histogram_counts_everything_once(lengths: list[int]) -> None:
    bars = histogram(lengths)
    width = bars[1][0] - bars[0][0] if len(bars) > 1 else None
    assert 1 <= len(bars) <= 12 and sum(count for _, count in bars) == len(lengths)
    assert bars[0][1] and bars[-1][1] and bars[0][0] <= min(lengths) and bars[-1][0] <= max(lengths)
    if width is not None:
        assert str(width).rstrip("0") in ("1", "2", "5")
        for start, count in bars:
            assert count == sum(start <= length < start + width for length in lengths)


def test_repeats_of_completions(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    rows = [pair("很好 a", "正面"), pair("太差", "负面"), pair("很好　Ａ", "正面"), pair("太差", "正面"), pair("", "x")]
    data = load(tmp_path, tiny_tokenizer, *rows, {"text": "y"})
    assert duplicates(data) == [(1, 3)]
    assert contradictions(data) == [(2, 4)]


def test_repeats_of_conversations(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    tools = {"tools": [{"name": "weather"}]}
    rows = [
        dialogue("你好", "好", "再见", "再见"),
        dialogue("你好", "好", "再见", "拜拜"),
        dialogue("你好", "好"),
        dialogue("你好", "好", "谢谢"),
        {**dialogue("你好", "好"), **tools},
    ]
    data = load(tmp_path, tiny_tokenizer, *rows)
    assert duplicates(data) == [(3, 4)]
    assert contradictions(data) == [(1, 2)]


def test_overlap_of_train_and_validation(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    train = load(tmp_path, tiny_tokenizer, pair("很好", "正面"), pair("", "文章"))
    validation = load(
        tmp_path, tiny_tokenizer, pair("新的", "正面"), pair("很 好", "负面"), {"text": "文章"}, {"text": "书"}
    )
    assert overlap(train, validation) == (2, 3)


def test_a_row_spelled_out(tiny_tokenizer: Tokenizer) -> None:
    items = [{"role": "user", "content": "你好\n\x1b[31m😀"}, {"role": "assistant", "content": "好\n。"}]
    lines = spell(tiny_tokenizer, encode_conversation(tiny_tokenizer, items))
    assert [[(span.text, span.learned) for span in line] for line in lines] == [
        [("[gMASK]sop", False)],
        [("<|user|> \\n 你好\\n\\x1b[31m😀", False)],
        [("<|assistant|>", False), (" \\n 好\\n。</s>", True)],
    ]


def test_what_a_terminal_would_obey_is_spelled_out(tiny_tokenizer: Tokenizer) -> None:
    marks = "\u202e\ufeff\u200b\u2066\u2028\x85"
    row = encode_conversation(tiny_tokenizer, [{"role": "assistant", "content": f"a{marks}b"}])
    shown = "".join(span.text for line in spell(tiny_tokenizer, row) for span in line)
    assert r"a\u202e\ufeff\u200b\u2066\u2028\x85b" in shown


def test_a_text_in_pieces_is_one_row(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    """It repeats itself in its pieces, and another row in one of them; neither is a repeat or a conflict."""
    path = tmp_path / "data.jsonl"
    texts = ["今天天气很好" * 20, "今天天气很好" * 20 + "a", "今天天气很好" * 20]
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts), encoding="utf-8")
    data = load_dataset(path, tiny_tokenizer, max_length=32)
    assert data.split == (1, 2, 3)
    assert (duplicates(data), contradictions(data), overlap(data, data)) == ([(1, 3)], [], (1, 2, 3))


def test_the_id_that_stops_an_answer_is_shown_as_learned(tiny_tokenizer: Tokenizer) -> None:
    items = [{"role": role, "content": "a"} for role in ("user", "assistant", "user")]
    lines = spell(tiny_tokenizer, encode_conversation(tiny_tokenizer, items))
    assert [(span.text, span.learned) for span in lines[-1]] == [("<|user|>", True), (" \\n a</s>", False)]
