"""Two checkpoints for the official calls: the official tiny one, and one of ours that was taught conversations."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from chatglm3.compat import AutoModel, AutoTokenizer
from chatglm3.model.saving import save_model
from chatglm3.tokenizer import Tokenizer
from golden import GOLDEN
from taught import GREETING, RESULT, STORY, SYSTEM, TRUSTED, WEATHER, Loaded, lesson
from tiny_model import teach, tiny_config, tiny_model


@pytest.fixture(scope="session")
def taught_dir(tiny_tokenizer: Tokenizer, tiny_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder: greets, tells a story in the second turn, makes a tool call, and reads its result."""
    folder = tmp_path_factory.mktemp("taught")
    t = tiny_tokenizer
    model = tiny_model(tiny_config(t.vocab_size + 7))  # a few ids without a meaning, as officially
    lessons = [
        lesson(t, GREETING[:1], GREETING[1:], t.user_id),
        lesson(t, [*GREETING, STORY[0]], STORY[1:], t.eos_id),
        ([t.gmask_id, t.sop_id, *t.encode_trusted(TRUSTED)], lesson(t, [], GREETING[1:], t.user_id)[1]),
        lesson(t, [SYSTEM, WEATHER[0]], WEATHER[1:], t.observation_id),
        lesson(t, [SYSTEM, *WEATHER, RESULT[0]], RESULT[1:], t.user_id),
    ]
    teach(model, lessons)
    save_model(model, folder)
    for file in tiny_tokenizer_dir.iterdir():
        shutil.copy(file, folder)
    return folder


@pytest.fixture
def taught(taught_dir: Path) -> Loaded:
    """The taught model, loaded as a script loads it."""
    model = AutoModel.from_pretrained(taught_dir, trust_remote_code=True, device="cpu").eval()
    return Loaded(model, AutoTokenizer.from_pretrained(taught_dir, trust_remote_code=True))


@pytest.fixture(scope="session")
def official() -> Loaded:
    """The official tiny model in float32; the test is skipped where it is absent."""
    if not GOLDEN.is_dir():
        pytest.skip("the official fixtures (../shared/golden) are absent")
    model = AutoModel.from_pretrained(GOLDEN / "tiny-chat", device="cpu", torch_dtype=torch.float32)
    return Loaded(model, AutoTokenizer.from_pretrained(GOLDEN / "tiny-chat"))
