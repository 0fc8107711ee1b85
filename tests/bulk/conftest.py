"""The bundled models, loaded once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import chatglm3


@pytest.fixture(scope="session")
def nano() -> Iterator[chatglm3.ChatGLM]:
    with chatglm3.load("nano") as glm:
        yield glm


@pytest.fixture(scope="session")
def nano_base() -> Iterator[chatglm3.ChatGLM]:
    with chatglm3.load("nano-base") as glm:
        yield glm
