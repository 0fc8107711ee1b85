"""The config with the official attribute names."""

from __future__ import annotations

from typing import Any

from chatglm3.model.config import ModelConfig


class OfficialConfig:
    """Every key of config.json as an attribute, and `vocab_size`. Read-only: setting one raises AttributeError."""

    __slots__ = ("_config",)

    def __init__(self, config: ModelConfig) -> None:
        self._config = config

    def __getattr__(self, name: str) -> Any:
        if name == "vocab_size":
            return self._config.padded_vocab_size
        if not name.startswith("_") and hasattr(self._config, name):
            return getattr(self._config, name)
        if name in self._config.extra:
            return self._config.extra[name]
        raise AttributeError(f"config.json has no {name!r}")

    def to_dict(self) -> dict[str, Any]:
        """A fresh config.json."""
        return self._config.to_dict()
