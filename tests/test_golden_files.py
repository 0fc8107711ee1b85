"""The official fixtures are those that the other tests were written against."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from golden import GOLDEN, golden_json, needs_golden

FILES: list[dict[str, Any]] = golden_json("manifest.json").get("files", [])


@needs_golden
@pytest.mark.parametrize("file", FILES, ids=lambda file: file["path"])
def test_every_fixture_is_unchanged(file: dict[str, Any]) -> None:
    content = (GOLDEN / file["path"]).read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (file["bytes"], file["sha256"])


@needs_golden
def test_every_fixture_is_listed() -> None:
    found = {path.relative_to(GOLDEN).as_posix() for path in GOLDEN.rglob("*") if path.is_file()}
    assert found == {file["path"] for file in FILES} | {"manifest.json"}
