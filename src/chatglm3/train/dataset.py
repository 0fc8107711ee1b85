"""A data file to training rows: parsed, encoded and shortened, with an account of what became of every row.

A row that is not what it must be stops the reading with its number. A row that is sound and cannot be used (nothing in
it is learned, or it is too long even without its context) is dropped and counted. Plain text that is too long becomes
several rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from chatglm3.errors import DataError, MessageError, TokenizerError
from chatglm3.tables import Row
from chatglm3.tokenizer import Tokenizer
from chatglm3.train.data import IGNORED, TrainingRow, as_turns, encode_completion, encode_turns
from chatglm3.train.formats import (
    ChatExample,
    Example,
    Kind,
    NoTargetError,
    TextExample,
    kind_of,
    parse_row,
    unused_fields,
)
from chatglm3.train.reading import read_data
from chatglm3.train.remarks import EMPTY_ANSWER, remarks
from chatglm3.train.truncate import shorten_completion, shorten_turns, split_text

NO_TARGET = "no answer to learn"
_ONE = {"chat": "a conversation", "base": "plain text"}
_MANY = {"chat": "conversations", "base": "plain text"}
_REMEDY = {
    "chat": "give rows with prompt and response, or with text",
    "base": "name the columns instruction and output, or write conversations",
}
"""What to do with data of a kind where the other one is wanted."""


@dataclass(frozen=True)
class Dataset:
    """The rows to train on, the examples that they come from, and their numbers in the file, from 1.

    `dropped_rows` has the numbers of the rows that cannot be used, by reason; `shortened` of those that lost context;
    `remarks` of those that are odd in some way; `split` of those that became several rows, which share their number and
    their example.
    """

    kind: Kind
    rows: tuple[TrainingRow, ...]
    examples: tuple[Example, ...]
    numbers: tuple[int, ...]
    dropped_rows: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    shortened: tuple[int, ...] = ()
    remarks: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    split: tuple[int, ...] = ()

    @property
    def dropped(self) -> dict[str, int]:
        """How many rows were dropped for each reason."""
        return {reason: len(numbers) for reason, numbers in self.dropped_rows.items()}


def load_dataset(
    path: Path,
    tokenizer: Tokenizer,
    *,
    kind: Kind | None = None,
    max_length: int,
    train_on_observation: bool = False,
    encoding: str | None = None,
) -> Dataset:
    """Read a file of JSON, JSONL, CSV or Parquet rows into rows of at most `max_length` ids.

    `kind` says what the rows must be; None takes what they are. Raises OSError, or `DataError` in one line for a file
    that is empty, mixed, of the other kind, or has no row that can be used, and for a row that is not what it must be.
    """
    reader = _Reader(path, tokenizer, kind, max_length, train_on_observation)
    for number, row in enumerate(read_data(path, encoding=encoding), 1):
        try:
            reader.take(number, row)
        except (DataError, MessageError, TokenizerError) as error:
            raise DataError(f"{path}, row {number}: {error}") from None
    return reader.dataset()


def prompts_and_targets(dataset: Dataset, tokenizer: Tokenizer) -> list[tuple[list[int], str]]:
    """The ids before every learned answer, and the answer's text: one for each assistant turn, or completion.

    The prompts are those of training, shortened like them. The text is what decoding a generated answer without its
    control ids gives, stripped; that of a tool call begins with its header line.
    """
    answers = [answer for row in dataset.rows for answer in _answers(row, dataset.kind, tokenizer)]
    return [(prompt, tokenizer.decode(ids, skip_special_tokens=True).strip()) for prompt, ids in answers]


def other_kind(found: Kind, *, chat_model: bool, model: str) -> str | None:
    """One line that says data are for the other sort of model than `model`; None if they fit."""
    if chat_model == (found == "chat"):
        return None
    wanted: Kind = "chat" if chat_model else "base"
    return (
        f"the data are {_MANY[found]}, and {model} is a {wanted.title()} model, which is trained on {_MANY[wanted]}: "
        f"{_REMEDY[found]}, or take the other model"
    )


class _Reader:
    """What has been read so far."""

    def __init__(self, path: Path, tokenizer: Tokenizer, kind: Kind | None, limit: int, on_observation: bool) -> None:
        self._path, self._tokenizer, self._limit = path, tokenizer, limit
        self._wanted, self._on_observation = kind, on_observation
        self._kind: Kind | None = None
        self._kept: list[tuple[int, Example, TrainingRow]] = []
        self._shortened: list[int] = []
        self._split: list[int] = []
        self._dropped: dict[str, list[int]] = {}
        self._remarks: dict[str, list[int]] = {}

    def take(self, number: int, row: Row) -> None:
        """Keep or drop a row. Raises the errors of a row that is not what it must be."""
        for name in unused_fields(row):
            self._remark(f"the field {name!r} is not used", number)
        try:
            example = parse_row(row)
        except NoTargetError:
            self._drop(NO_TARGET, number)
            return
        self._require_kind(kind_of(example))
        if isinstance(example, ChatExample):
            self._take_conversation(number, example)
        else:
            self._take_text(number, example)

    def dataset(self) -> Dataset:
        """All of it."""
        if not self._kept or self._kind is None:
            reasons = ", ".join(f"{len(numbers)} with {reason}" for reason, numbers in self._dropped.items())
            remedy = (
                "correct the data" if set(self._dropped) == {NO_TARGET} else "raise the length, or shorten the rows"
            )
            raise DataError(f"{self._path}: no row can be used: {reasons}; {remedy}")
        numbers, examples, rows = zip(*self._kept, strict=True)
        return Dataset(
            self._kind,
            rows,
            examples,
            numbers,
            {reason: tuple(found) for reason, found in self._dropped.items()},
            tuple(self._shortened),
            {remark: tuple(found) for remark, found in self._remarks.items()},
            tuple(self._split),
        )

    def _require_kind(self, found: Kind) -> None:
        if self._wanted not in (None, found):
            raise DataError(
                f"it is {_ONE[found]}, and the rows must be {_MANY[self._wanted or found]}; {_REMEDY[found]}"
            )
        if self._kind not in (None, found):
            before = _MANY[self._kind or found]
            raise DataError(f"it is {_ONE[found]}, and the rows before it are {before}; keep them in two files")
        self._kind = found

    def _take_conversation(self, number: int, example: ChatExample) -> None:
        turns = as_turns(example.messages, tools=example.tools, train_on_observation=self._on_observation)
        for remark in remarks(turns):
            self._remark(remark, number)
        if not any(turn.learned for turn in turns):
            self._drop(NO_TARGET, number)
            return
        whole = encode_turns(self._tokenizer, turns)
        self._keep(number, example, whole, lambda: shorten_turns(self._tokenizer, turns, self._limit))

    def _take_text(self, number: int, example: TextExample) -> None:
        prompt, response = example.prompt, example.response
        if not response.strip():
            self._remark(EMPTY_ANSWER, number)
        whole = encode_completion(self._tokenizer, prompt, response)
        pieces = [] if prompt or self._fits(whole) else split_text(self._tokenizer, response, self._limit)
        if pieces:
            self._kept += [(number, example, piece) for piece in pieces]
            self._split.append(number)
            return
        self._keep(number, example, whole, lambda: shorten_completion(self._tokenizer, prompt, response, self._limit))

    def _keep(
        self, number: int, example: Example, whole: TrainingRow, shorten: Callable[[], TrainingRow | None]
    ) -> None:
        """Keep the whole row, or else what `shorten` makes of it."""
        row = whole if self._fits(whole) else shorten()
        if row is None:
            self._drop(f"more than {self._limit} tokens without any context that can be cut", number)
            return
        self._kept.append((number, example, row))
        if row is not whole:
            self._shortened.append(number)

    def _fits(self, row: TrainingRow) -> bool:
        return len(row.input_ids) <= self._limit

    def _drop(self, reason: str, number: int) -> None:
        self._dropped.setdefault(reason, []).append(number)

    def _remark(self, remark: str, number: int) -> None:
        self._remarks.setdefault(remark, []).append(number)


def _answers(row: TrainingRow, kind: Kind, tokenizer: Tokenizer) -> Iterator[tuple[list[int], list[int]]]:
    ids, labels = row.input_ids, row.labels
    if kind == "base":
        begin = next(place for place, label in enumerate(labels) if label != IGNORED)
        yield ids[:begin], ids[begin:]
        return
    end = 0
    for place, token_id in enumerate(ids[:-1]):
        # Several assistant messages in a row are one answer: the model writes the ids between them itself.
        if token_id == tokenizer.assistant_id and labels[place + 1] != IGNORED and place >= end:
            stops = (n for n in range(place + 1, len(ids)) if ids[n] in tokenizer.stop_ids)
            end = next(stops, len(ids))
            yield ids[: place + 1], ids[place + 1 : end]
