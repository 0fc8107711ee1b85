"""The tokenizers that grammars are tried on: a tiny one that needs many byte pieces, nano's, and the official one."""

from __future__ import annotations

from pathlib import Path

import pytest

import chatglm3
from chatglm3.tokenizer import Tokenizer

NANO = Path(chatglm3.__file__).parent / "assets" / "nano"


@pytest.fixture(scope="session")
def nano_tokenizer() -> Tokenizer:
    return Tokenizer.from_pretrained(NANO)


@pytest.fixture(scope="session", params=["tiny", "nano", "official"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """All three in turn."""
    tokenizer: Tokenizer = request.getfixturevalue(f"{request.param}_tokenizer")
    return tokenizer
