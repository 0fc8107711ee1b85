"""Text to token ids and back: SentencePiece pieces, and the nine control ids that follow them.

`Tokenizer` reads `tokenizer.model` and nothing else: no `tokenizer_config.json` can change an id. Text given
to `encode` never yields a control id. `StreamDecoder` is the one decoder: `decode` runs it to the end.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import sentencepiece

from chatglm3.errors import TokenizerError

CONTROL_TOKENS = (
    "[MASK]",
    "[gMASK]",
    "[sMASK]",
    "sop",
    "eop",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|observation|>",
)
_ROLE_MARKER = re.compile(r"(<\|(?:system|user|assistant|observation)\|>)")
_SPACE = "\u2581"  # how SentencePiece writes a space inside a piece
_BROKEN_BYTE = "\ufffd"


@dataclass(frozen=True, slots=True)
class Padded:
    """Rows of one length, padded on the left. Mask and position are 0 on padding; positions count from 0."""

    input_ids: list[list[int]]
    attention_mask: list[list[int]]
    position_ids: list[list[int]]


class Tokenizer:
    """A SentencePiece model with byte pieces, and the control ids at `n_pieces + 0..8`."""

    pad_id = 0
    bos_id = 1
    eos_id = 2

    def __init__(self, model: bytes) -> None:
        """`model` is the content of a tokenizer.model; TokenizerError if it is not usable as one."""
        self._pieces = _load_pieces(model)
        self.n_pieces: int = self._pieces.get_piece_size()
        self.vocab_size = self.n_pieces + len(CONTROL_TOKENS)
        self._token_ids = {"<unk>": 0, "<pad>": self.pad_id, "<bos>": self.bos_id, "<eos>": self.eos_id}
        self._token_ids |= {name: self.n_pieces + i for i, name in enumerate(CONTROL_TOKENS)}
        self.gmask_id = self.token_id("[gMASK]")
        self.sop_id = self.token_id("sop")
        self.system_id = self.role_id("system")
        self.user_id = self.role_id("user")
        self.assistant_id = self.role_id("assistant")
        self.observation_id = self.role_id("observation")
        self.newline_id = self.encode("\n")[-1]
        self.stop_ids = (self.eos_id, self.user_id, self.observation_id)

    @classmethod
    def from_pretrained(cls, path: str | Path) -> Tokenizer:
        """Read a tokenizer.model, or the one in a model's folder."""
        file = Path(path)
        file = file / "tokenizer.model" if file.is_dir() else file
        try:
            model = file.read_bytes()
        except OSError as error:
            raise TokenizerError(
                f"{file} cannot be read ({error.strerror}): copy it there from the original model"
            ) from error
        try:
            return cls(model)
        except TokenizerError as error:
            raise TokenizerError(f"{file} is not usable: {error}") from error

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[bytes]]:
        return Tokenizer, (self.model_bytes,)

    @property
    def model_bytes(self) -> bytes:
        """The content of the tokenizer.model."""
        content: bytes = self._pieces.serialized_model_proto()
        return content

    def token_id(self, name: str) -> int:
        """The id of a control token (or `<bos>`, `<eos>`, `<pad>`, `<unk>`) by its official name."""
        try:
            return self._token_ids[name]
        except KeyError:
            known = " ".join(self._token_ids)
            raise TokenizerError(f"there is no control token {name!r}: use one of {known}") from None

    def role_id(self, role: str) -> int:
        """The control id that opens a message of this role."""
        return self.token_id(f"<|{role}|>")

    def encode(self, text: str) -> list[int]:
        """Plain text as pieces, with SentencePiece's own leading space. Never a control id."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise TokenizerError(
                f"the text has a lone surrogate at character {error.start}: "
                "decode the input as UTF-8 with errors='replace'"
            ) from None
        ids: list[int] = self._pieces.encode(text)
        return ids

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Several plain texts; `pad` makes one block of the rows."""
        return [self.encode(text) for text in texts]

    def encode_continuation(self, text: str) -> list[int]:
        """Text that goes on where other text ends: the pieces without SentencePiece's leading space."""
        ids = self.encode(f"\n{text}")
        return ids[ids.index(self.newline_id) + 1 :]

    def encode_trusted(self, text: str) -> list[int]:
        """Text that the program itself wrote: role markers become control ids, the rest is encoded.

        Never give it anything that a user or a model wrote: it could speak for another role.
        """
        ids: list[int] = []
        for place, part in enumerate(_ROLE_MARKER.split(text)):
            ids += [self.token_id(part)] if place % 2 else self.encode(part)  # every second part is a marker
        return ids

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """Ids as text. Ids 0, 1, 2 and those without a meaning vanish; control ids show unless skipped."""
        decoder = StreamDecoder(self)
        shown = (i for i in ids if not (skip_special_tokens and self.n_pieces <= i < self.vocab_size))
        return "".join(map(decoder.push, shown)) + decoder.flush()

    def pad(
        self,
        rows: Sequence[Sequence[int]],
        *,
        pad_to_multiple_of: int | None = None,
        length: int | None = None,
    ) -> Padded:
        """Pad on the left to the longest row, or to `length`, rounded up to a multiple if one is given."""
        longest = max(map(len, rows), default=0)
        width = longest if length is None else length
        if width < longest:
            raise TokenizerError(f"a row has {longest} ids and cannot be padded to {width}: shorten it first")
        if pad_to_multiple_of:
            width = -(-width // pad_to_multiple_of) * pad_to_multiple_of
        gaps = [width - len(row) for row in rows]
        return Padded(
            input_ids=[[self.pad_id] * gap + list(row) for gap, row in zip(gaps, rows, strict=True)],
            attention_mask=[[0] * gap + [1] * (width - gap) for gap in gaps],
            position_ids=[[0] * gap + list(range(width - gap)) for gap in gaps],
        )

    def byte_value(self, token_id: int) -> int | None:
        """The byte that a byte piece stands for; None for every other id."""
        if not (0 <= token_id < self.n_pieces and self._pieces.is_byte(token_id)):
            return None
        return int(self._pieces.id_to_piece(token_id)[3:5], 16)  # the piece is spelled <0x0A>

    def piece(self, token_id: int) -> str:
        """The piece as SentencePiece spells it, or a control token's name; "" for ids without a text."""
        if self.eos_id < token_id < self.n_pieces:
            piece: str = self._pieces.id_to_piece(token_id)
            return piece
        if self.n_pieces <= token_id < self.vocab_size:
            return CONTROL_TOKENS[token_id - self.n_pieces]
        return ""


class StreamDecoder:
    """Decodes ids one by one into complete characters; the parts together are `Tokenizer.decode` of all ids.

    The first space of the whole text is SentencePiece's own and is dropped; a stray byte becomes U+FFFD.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes = bytearray()
        self._begun = False

    def push(self, token_id: int) -> str:
        """The text that this id completes, "" if none."""
        byte = self._tokenizer.byte_value(token_id)
        if byte is not None:
            self._bytes.append(byte)
            return self._take_characters(complete_only=True)
        text = self.flush()
        piece = self._tokenizer.piece(token_id)
        if not self._begun and piece.startswith(_SPACE):
            piece = piece[1:]
            self._begun = True
        self._begun |= bool(piece)
        return text + piece.replace(_SPACE, " ")

    def flush(self) -> str:
        """The bytes still waiting for the rest of their character, each as U+FFFD."""
        return self._take_characters(complete_only=False)

    def _take_characters(self, *, complete_only: bool) -> str:
        text = ""
        while self._bytes:
            size = _utf8_length(self._bytes[0])
            if complete_only and len(self._bytes) < size:
                break
            try:
                text += self._bytes[:size].decode()
            except UnicodeDecodeError:
                text += _BROKEN_BYTE
                size = 1
            del self._bytes[:size]
        self._begun |= bool(text)
        return text


def _utf8_length(first: int) -> int:
    """Bytes in the UTF-8 character that this byte begins; 1 if it cannot begin one."""
    if 0xC0 <= first < 0xE0:
        return 2
    if 0xE0 <= first < 0xF0:
        return 3
    return 4 if 0xF0 <= first < 0xF8 else 1


def _load_pieces(model: bytes) -> sentencepiece.SentencePieceProcessor:
    again = "copy tokenizer.model from the original model again"
    if not model:
        raise TokenizerError(f"the file is empty: {again}")
    try:
        pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError:
        raise TokenizerError(f"it is not a SentencePiece model, or is cut short: {again}") from None
    if (pieces.unk_id(), pieces.bos_id(), pieces.eos_id()) != (0, 1, 2):
        raise TokenizerError(f"its ids 0, 1, 2 are not <unk>, <s>, </s>, so it is not ChatGLM3's: {again}")
    if not pieces.is_byte(pieces.piece_to_id("<0x0A>")):
        raise TokenizerError(f"it has no byte pieces, so it is not ChatGLM3's: {again}")
    return pieces
