from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from chatglm3.kernels import native


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Choose the kernels that run until the test ends."""

    def choose(name: str) -> None:
        monkeypatch.setenv("CHATGLM3_KERNELS", name)
        native.reset()

    yield choose
    monkeypatch.undo()
    native.reset()
