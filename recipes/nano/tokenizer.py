"""Trains the SentencePiece model of the nano models, with the settings of the official one."""

from __future__ import annotations

import io
from collections.abc import Iterable

import sentencepiece

N_PIECES = 4_000


def train_tokenizer(texts: Iterable[str], n_pieces: int = N_PIECES) -> bytes:
    """The content of `tokenizer.model`: BPE with byte pieces, no normalisation, digits apart, pieces up to 16 long."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts for line in text.splitlines() if line),
        model_writer=model,
        model_type="bpe",
        vocab_size=n_pieces,
        character_coverage=0.995,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        split_digits=True,
        max_sentencepiece_length=16,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        num_threads=1,
        minloglevel=1,
    )
    return model.getvalue()
