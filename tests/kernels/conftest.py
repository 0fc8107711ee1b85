"""CHATGLM3_TEST_NATIVE names a folder whose build of the extension is tested in place of the installed one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

if folder := os.environ.get("CHATGLM3_TEST_NATIVE"):
    (library,) = Path(folder).glob("_native*.so")
    spec = spec_from_file_location("chatglm3.kernels._native", library)
    assert spec and spec.loader
    sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[spec.name])

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
