"""A tiny model on disk, and rows to train it on."""

from __future__ import annotations

from pathlib import Path

import pytest

from train.runs import data_file, model_folder


@pytest.fixture(scope="session")
def model(tiny_tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model_folder(tmp_path_factory.mktemp("models") / "tiny", tiny_tokenizer_dir)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return data_file(tmp_path / "train.jsonl", 14)
