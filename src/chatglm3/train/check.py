"""What a model will see of a data file: lengths, repeats, what train and validation share, and rows spelled out."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from chatglm3.tokenizer import StreamDecoder, Tokenizer
from chatglm3.train.data import IGNORED, TrainingRow, as_turns
from chatglm3.train.dataset import Dataset
from chatglm3.train.formats import Example, TextExample

_MOST_BARS = 12
_OBEYED = ("Cc", "Cf", "Zl", "Zp")


@dataclass(frozen=True)
class Lengths:
    """Tokens of rows: of all together, those of them that are targets, and how long single rows are."""

    tokens: int
    targets: int
    median: int
    most_up_to: int
    """19 of 20 rows are at most so long."""
    longest: int


@dataclass(frozen=True)
class Span:
    """A piece of a row on one line: its text, and whether the model learns to write it."""

    text: str
    learned: bool


def measure(dataset: Dataset) -> Lengths:
    """The lengths of the rows that are kept."""
    lengths = sorted(len(row.input_ids) for row in dataset.rows)
    targets = sum(label != IGNORED for row in dataset.rows for label in row.labels)
    most = lengths[min(len(lengths) - 1, len(lengths) * 19 // 20)]
    return Lengths(sum(lengths), targets, lengths[len(lengths) // 2], most, lengths[-1])


def histogram(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """The first length of each bar, and how many lengths are in it; bars are 1, 2 or 5 times a power of ten wide."""
    width = next(width for width in _widths() if max(lengths) < width * _MOST_BARS)
    first = min(lengths) // width
    bars = [0] * (max(lengths) // width - first + 1)
    for length in lengths:
        bars[length // width - first] += 1
    return [((first + place) * width, count) for place, count in enumerate(bars)]


def duplicates(dataset: Dataset) -> list[tuple[int, ...]]:
    """The numbers of rows that say the same, in groups; case, spaces and width of letters make no difference."""
    return [tuple(numbers) for numbers in _groups(dataset, _example_key).values() if len(numbers) > 1]


def contradictions(dataset: Dataset) -> list[tuple[int, ...]]:
    """The numbers of rows that ask the same and are answered differently, in groups."""
    answer = dict(zip(dataset.numbers, map(_example_key, dataset.examples), strict=True))
    groups = _groups(dataset, _question_key).values()
    return [tuple(numbers) for numbers in groups if len({answer[number] for number in numbers}) > 1]


def overlap(train: Dataset, validation: Dataset) -> tuple[int, ...]:
    """The numbers of the validation rows whose question is also one of train."""
    seen = _groups(train, _question_key)
    shared = (numbers for key, numbers in _groups(validation, _question_key).items() if key in seen)
    return tuple(sorted(number for numbers in shared for number in numbers))


def spell(tokenizer: Tokenizer, row: TrainingRow) -> list[list[Span]]:
    """A row for human eyes: a line for each message, control tokens and the ends of lines spelled out."""
    roles = {tokenizer.role_id(role) for role in ("system", "user", "assistant", "observation")}
    lines: list[list[Span]] = [[]]
    decoder, learned = StreamDecoder(tokenizer), False
    for token_id, label in zip(row.input_ids, row.labels, strict=True):
        if token_id in roles or (label != IGNORED) != learned:
            _append(lines[-1], decoder.flush(), learned)
        if token_id in roles:
            lines.append([])
        learned = label != IGNORED
        _append(lines[-1], "</s>" if token_id == tokenizer.eos_id else decoder.push(token_id), learned)
    _append(lines[-1], decoder.flush(), learned)
    return lines


def _append(line: list[Span], text: str, learned: bool) -> None:
    shown = "".join(_visible(letter) for letter in text)
    if line and line[-1].learned == learned:
        line[-1] = Span(line[-1].text + shown, learned)
    elif shown:
        line.append(Span(shown, learned))


def _visible(letter: str) -> str:
    """Characters that a terminal would obey (controls, directions, ends of lines) or not show, spelled out."""
    return letter.encode("unicode_escape").decode() if unicodedata.category(letter) in _OBEYED else letter


def _widths() -> Iterator[int]:
    power = 1
    while True:
        yield from (power, 2 * power, 5 * power)
        power *= 10


def _groups(dataset: Dataset, key: Callable[[Example], bytes]) -> dict[bytes, list[int]]:
    groups: dict[bytes, list[int]] = {}
    for number, example in dict(zip(dataset.numbers, dataset.examples, strict=True)).items():  # of each row one piece
        groups.setdefault(key(example), []).append(number)
    return groups


def _example_key(example: Example) -> bytes:
    return _digest(_texts(example))


def _question_key(example: Example) -> bytes:
    """Of all that stands before the last answer; of the answer if that is nothing."""
    *question, answer = _texts(example)
    return _digest(question if any(question) else [answer])


def _texts(example: Example) -> list[str]:
    """What an example says, up to its last answer."""
    if isinstance(example, TextExample):
        return [example.prompt, example.response]
    messages = [turn.message for turn in as_turns(example.messages, tools=example.tools)]
    while len(messages) > 1 and messages[-1].role != "assistant":
        messages.pop()
    return [f"{m.role}\0{m.metadata}\0{m.content}\0{m.tools or ''}" for m in messages]


def _digest(texts: Sequence[str]) -> bytes:
    plain = ("".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in texts)
    return blake2b("\0\0".join(plain).encode("utf-8", "replace"), digest_size=16).digest()
