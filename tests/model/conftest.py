"""A tiny random checkpoint of our own, for the tests that run without the official fixtures."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from chatglm3.model.checkpoint import load_model, save_model
from chatglm3.model.transformer import ChatGLMModel
from golden import GOLDEN
from model.small import random_model


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The random model in float16, as one file. Not to be changed."""
    folder = tmp_path_factory.mktemp("tiny")
    save_model(random_model(), folder)
    return folder


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """The same in several shards, for a test to damage."""
    save_model(random_model(), tmp_path / "model", max_shard_bytes=40_000)
    return tmp_path / "model"


@pytest.fixture
def bin_folder(tmp_path: Path, saved: Path) -> Path:
    """The same as one `pytorch_model.bin`, for a test to damage."""
    folder = tmp_path / "bin"
    folder.mkdir()
    shutil.copy(saved / "config.json", folder)
    torch.save(dict(random_model().state_dict()), folder / "pytorch_model.bin")
    return folder


@pytest.fixture(scope="session")
def tiny_chat() -> ChatGLMModel:
    """The official tiny checkpoint in fp32; a test that changes it must change it back."""
    if not GOLDEN.is_dir():
        pytest.skip("the official fixtures (../shared/golden) are absent")
    return load_model(GOLDEN / "tiny-chat", device="cpu", dtype="float32")
