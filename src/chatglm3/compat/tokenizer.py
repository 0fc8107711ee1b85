"""The official tokenizer class's calls on top of `Tokenizer`.

What differs from the official class, on purpose: `apply_chat_template` gives the ids of the chat itself (the official
template spells its control tokens as plain text), `skip_special_tokens=True` leaves the control tokens out (officially
it has no effect), and a failed assertion is a `TokenizerError` or `MessageError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from chatglm3.compat.encoding import BatchEncoding, as_encoding
from chatglm3.errors import TokenizerError
from chatglm3.messages import Message, Role, as_history
from chatglm3.prompt import chat_prompt, message_ids
from chatglm3.tokenizer import Padded, Tokenizer

HistoryLike = Iterable[Mapping[str, Any] | Message] | None


class ChatGLMTokenizer:
    """Text to ids and back as the official `ChatGLMTokenizer` does it; `tokenizer` is the one that does the work."""

    padding_side = "left"
    model_input_names = ("input_ids", "attention_mask", "position_ids")
    pad_token, eos_token, unk_token = "<unk>", "</s>", "<unk>"
    pad_token_id, eos_token_id, unk_token_id = 0, 2, 0

    def __init__(self, tokenizer: Tokenizer, *, encode_special_tokens: bool = False) -> None:
        """With `encode_special_tokens` role markers in a text become control ids: never for what a user wrote."""
        self.tokenizer = tokenizer
        self.encode_special_tokens = encode_special_tokens

    def save_pretrained(self, save_directory: str | Path) -> tuple[str]:
        """Write tokenizer.model, which is all that loading needs; returns its path."""
        file = Path(save_directory) / "tokenizer.model"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(self.tokenizer.model_bytes)
        return (str(file),)

    @property
    def vocab_size(self) -> int:
        """Pieces and control tokens."""
        return self.tokenizer.vocab_size

    def __len__(self) -> int:
        return len(self.get_vocab())

    def __call__(
        self,
        text: str | Sequence[str],
        text_pair: str | Sequence[str] | None = None,
        *,
        add_special_tokens: bool = True,
        padding: bool | str = False,
        truncation: bool = False,
        max_length: int | None = None,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
    ) -> BatchEncoding:
        """Encode one text or several: `[gMASK] sop` and the pieces; a pair ends with `</s>`. Padding is on the left.

        `padding` is True or "longest", "max_length", or False; `truncation` keeps the first `max_length` ids.
        """
        texts = [text] if isinstance(text, str) else list(text)
        pairs: list[str | None] = [None] * len(texts)
        if text_pair is not None:
            pairs = [text_pair] if isinstance(text_pair, str) else list(text_pair)
        if len(pairs) != len(texts):
            raise TokenizerError(f"{len(texts)} texts and {len(pairs)} text pairs do not go together")
        rows = [self._row(a, b, add_special_tokens) for a, b in zip(texts, pairs, strict=True)]
        if truncation:
            rows = [row[: _required(max_length, "truncation")] for row in rows]
        padded = self._pad(rows, padding, max_length, pad_to_multiple_of)
        return as_encoding(padded, return_tensors, batched=not isinstance(text, str))

    def encode(self, text: str, text_pair: str | None = None, *, add_special_tokens: bool = True) -> list[int]:
        """The ids of one text, as calling the tokenizer gives them."""
        return self._row(text, text_pair, add_special_tokens)

    def decode(self, token_ids: Any, *, skip_special_tokens: bool = False) -> str:
        """Ids (one, a list, a tensor or an array) as text."""
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        return self.tokenizer.decode([ids] if isinstance(ids, int) else ids, skip_special_tokens=skip_special_tokens)

    def batch_decode(self, sequences: Iterable[Any], *, skip_special_tokens: bool = False) -> list[str]:
        """Several rows of ids as texts."""
        return [self.decode(row, skip_special_tokens=skip_special_tokens) for row in sequences]

    def tokenize(self, text: str) -> list[str]:
        """The pieces of a text, as SentencePiece spells them."""
        return [self.tokenizer.piece(i) for i in self._encode(text)]

    def get_vocab(self) -> dict[str, int]:
        """Every piece and control token with its id; ids 0, 1 and 2 share the empty text, as officially."""
        return dict(self._vocab)

    def convert_tokens_to_ids(self, tokens: Any) -> Any:
        """The id of a piece or control token (`<unk>`'s for an unknown one), or a list of them for a list."""
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        return {"<s>": 1, "</s>": 2}.get(tokens) or self._vocab.get(tokens, self.unk_token_id)

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        """The piece of an id, or a list of them for a list."""
        return self.tokenizer.piece(ids) if isinstance(ids, int) else [self.tokenizer.piece(int(i)) for i in ids]

    def get_command(self, token: str) -> int:
        """The id of a control token, or of `<bos>`, `<eos>`, `<pad>`, `<unk>`. `TokenizerError` for any other."""
        return self.tokenizer.token_id(token)

    def get_prefix_tokens(self) -> list[int]:
        """`[gMASK] sop`, with which every prompt begins."""
        return [self.tokenizer.gmask_id, self.tokenizer.sop_id]

    def build_single_message(self, role: str, metadata: str, message: str) -> list[int]:
        """The ids of one message."""
        return message_ids(self.tokenizer, Message(cast(Role, role), message, metadata))

    def build_chat_input(self, query: str, history: HistoryLike = None, role: str = "user") -> BatchEncoding:
        """The prompt of a chat as tensors [1, n]."""
        ids = chat_prompt(self.tokenizer, (*as_history(history), Message(cast(Role, role), query)))
        return as_encoding(self._pad([ids], False, None, None), "pt", batched=True)

    def apply_chat_template(
        self,
        conversation: HistoryLike,
        *,
        add_generation_prompt: bool = False,
        tokenize: bool = True,
        return_tensors: str | None = None,
        return_dict: bool = False,
    ) -> Any:
        """The ids `build_chat_input` gives for the same messages: a list, a tensor [1, n], or an encoding of either.

        `tokenize=False` gives them as text, for reading: encoded again it is not the same prompt.
        """
        ids = chat_prompt(self.tokenizer, as_history(conversation), add_generation_prompt=add_generation_prompt)
        if not tokenize:
            return self.decode(ids)
        encoding = as_encoding(self._pad([ids], False, None, None), return_tensors, batched=False)
        return encoding if return_dict else encoding["input_ids"]

    @cached_property
    def _vocab(self) -> dict[str, int]:
        return {"": 0} | {self.tokenizer.piece(i): i for i in range(3, self.vocab_size)}

    def _encode(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise TokenizerError(f"a text must be a string, not {type(text).__name__}")
        return self.tokenizer.encode_trusted(text) if self.encode_special_tokens else self.tokenizer.encode(text)

    def _row(self, text: str, pair: str | None, add_special_tokens: bool) -> list[int]:
        ids = [*self.get_prefix_tokens(), *self._encode(text)] if add_special_tokens else self._encode(text)
        if pair is None:
            return ids
        return [*ids, *self._encode(pair), *([self.eos_token_id] if add_special_tokens else [])]

    def _pad(
        self, rows: list[list[int]], padding: bool | str, max_length: int | None, multiple: int | None
    ) -> dict[str, list[list[int]]]:
        if padding is False or padding == "do_not_pad":
            parts = [self.tokenizer.pad([row]) for row in rows]
            return _named(
                Padded(
                    [part.input_ids[0] for part in parts],
                    [part.attention_mask[0] for part in parts],
                    [part.position_ids[0] for part in parts],
                )
            )
        if padding not in (True, "longest", "max_length"):
            raise TokenizerError(f"padding must be True, 'longest', 'max_length' or False, not {padding!r}")
        length = _required(max_length, "padding='max_length'") if padding == "max_length" else None
        return _named(self.tokenizer.pad(rows, pad_to_multiple_of=multiple, length=length))


def _named(padded: Padded) -> dict[str, list[list[int]]]:
    return {
        "input_ids": padded.input_ids,
        "attention_mask": padded.attention_mask,
        "position_ids": padded.position_ids,
    }


def _required(max_length: int | None, what: str) -> int:
    if max_length is None:
        raise TokenizerError(f"{what} needs max_length")
    return max_length
