"""The wordings of the conversations, written for this project: `phrases/*.json`, one file a kind of conversation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def load_phrases(kind: str) -> dict[str, Any]:
    """Lists of wordings by what they are for; braces are filled in by the conversation."""
    phrases: dict[str, Any] = json.loads(
        Path(__file__).with_name("phrases").joinpath(f"{kind}.json").read_text("utf-8")
    )
    return phrases
