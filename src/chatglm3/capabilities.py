"""What a checkpoint was trained for: the files do not say it, so the name decides, as the official documents do."""

from __future__ import annotations

import re
from dataclasses import dataclass

from chatglm3.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class Capabilities:
    """`chat`: answers conversations (Base models do not). `tools`: calls tools (only the 8K chat model does)."""

    chat: bool
    tools: bool
    context: int


def capabilities_of(name: str, config: ModelConfig) -> Capabilities:
    """Judge by the last part of the model's name, or of the name that its config carries.

    Base models have "base" as a word of their name; the 32K and 128K models are known by their rotary base.
    """
    names = (name, str(config.extra.get("_name_or_path", "")))
    base = any("base" in re.split(r"[-_.]", re.split(r"[/\\]", n.rstrip("/\\"))[-1].lower()) for n in names)
    return Capabilities(chat=not base, tools=not base and config.rope_ratio == 1, context=config.seq_length)
