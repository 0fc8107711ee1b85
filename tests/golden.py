"""Reads the fixtures computed with the official code from `../shared`; tests that need them skip where it is absent."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
GOLDEN = SHARED / "golden"
OFFICIAL = SHARED / "official"

needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the official fixtures (../shared/golden) are absent")


@cache
def golden_json(name: str) -> Any:
    """One fixture file, parsed; an empty dict where the fixtures are absent, so that parametrised tests collect."""
    path = GOLDEN / name
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def golden_tensors(name: str) -> dict[str, Any]:
    """One tensor file of the fixtures."""
    from safetensors.torch import load_file

    return load_file(GOLDEN / name)
