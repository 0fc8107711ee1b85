"""What the tests share: a repeatable hypothesis profile, and a tiny tokenizer for all tests."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import settings

from chatglm3.tokenizer import Tokenizer
from golden import GOLDEN

# The networks here are tiny, and threads that wait for each other are what slows such tests on a busy machine.
# Set before torch is imported, and inherited by the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=80, database=None)
settings.load_profile("repeatable")

SENTENCES = (
    "你好，很高兴见到你。今天天气怎么样？北京今天晴，22度。",
    "这本书写得很好，我很喜欢。房间太小了，服务也不好。",
    "Hello! How can I help you today? Tell me a short story.",
    "```python",
    "tool_call(city='北京', days=3)",
    'Result: {"temperature": 22, "sky": "晴"} is what the tool gave.',
    "  two spaces, a\ttab and numbers 1234567890 (+-*/=) [x] {y}",
)


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a SentencePiece model of about 400 pieces, trained line by line with the official settings."""
    folder = tmp_path_factory.mktemp("tiny-tokenizer")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 4),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        byte_fallback=True,
        normalization_rule_name="identity",
        add_dummy_prefix=True,
        remove_extra_whitespaces=False,
        split_digits=True,
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    stray = {"encode_special_tokens": True, "eos_token": "<|user|>", "vocab_size": 7, "auto_map": None}
    (folder / "tokenizer_config.json").write_text(json.dumps(stray))
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_tokenizer_dir: Path) -> Tokenizer:
    """The tokenizer of `tiny_tokenizer_dir`."""
    return Tokenizer.from_pretrained(tiny_tokenizer_dir)


@pytest.fixture(scope="session")
def official_tokenizer() -> Tokenizer:
    """The official tokenizer; the test is skipped where it is absent."""
    if not GOLDEN.is_dir():
        pytest.skip("the official fixtures (../shared/golden) are absent")
    return Tokenizer.from_pretrained(GOLDEN / "tiny-chat")


@pytest.fixture(scope="session", params=["tiny", "official"])
def any_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Both tokenizers in turn."""
    tokenizer: Tokenizer = request.getfixturevalue(f"{request.param}_tokenizer")
    return tokenizer
