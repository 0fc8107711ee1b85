"""The bundled models, and one report of both on a few of the example reviews."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import chatglm3
from adapter_folders import lora_folder, prefix_folder
from chatglm3.evaluate import Report, Sample, compare, read_sample
from chatglm3.model.config import ModelConfig
from evaluate.reviews import ASSETS, LABELS, QUESTION, REVIEWS


@pytest.fixture(scope="session")
def sample() -> Sample:
    """Ten rows to measure, twelve to draw from."""
    if not REVIEWS.is_file() or not (ASSETS / "nano").is_dir():
        pytest.skip("the example reviews or the bundled models are absent")
    return read_sample(REVIEWS, LABELS, sample=10)


@pytest.fixture(scope="session")
def report(sample: Sample) -> Report:
    """Both models, with two examples and two seeds."""
    return compare(sample, QUESTION, chat="nano", base="nano-base", examples=2, seeds=2)


@pytest.fixture(scope="session")
def lora(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random LoRA adapter that fits the bundled models, and changes their answers."""
    return lora_folder(tmp_path_factory.mktemp("adapters") / "lora", ModelConfig.from_pretrained(ASSETS / "nano"))


@pytest.fixture(scope="session")
def prefix(sample: Sample, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random P-Tuning prefix that fits them, and does so too."""
    config = ModelConfig.from_pretrained(ASSETS / "nano-base")
    return prefix_folder(tmp_path_factory.mktemp("adapters") / "prefix", config)


@pytest.fixture(scope="session", params=["nano", "nano-base"])
def bundled(request: pytest.FixtureRequest, sample: Sample) -> Iterator[chatglm3.ChatGLM]:
    """Each bundled model in turn."""
    with chatglm3.load(request.param) as glm:
        yield glm
