"""`quantization_config`: read strictly, written as it was."""

from __future__ import annotations

from typing import Any

import pytest

from chatglm3.errors import CheckpointError
from chatglm3.model.config import ModelConfig
from chatglm3.model.quantization import Quantization
from model.small import CONFIG

STORED = {
    "quant_method": "chatglm3",
    "format_version": 1,
    "bits": 4,
    "group_size": 32,
    "embedding_bits": 8,
    "output_bits": 8,
}


def config_with(stored: Any) -> ModelConfig:
    return ModelConfig.from_dict({**CONFIG.to_dict(), "quantization_config": stored})


def test_it_is_read_and_written_as_it_is() -> None:
    config = config_with(STORED)
    assert config.quantization == Quantization(4, 32, 8, 8)
    assert config.to_dict()["quantization_config"] == STORED
    assert ModelConfig.from_dict(config.to_dict()) == config
    assert "quantization_config" not in CONFIG.to_dict() and config_with(None).quantization is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quant_method": "gptq"}, "quant_method 'gptq' is not supported; load the original weights"),
        ({"format_version": 2}, "format_version 2 is unknown; update chatglm3"),
        ({"format_version": None}, "format_version None is unknown"),
        ({"bits": 3}, "bits must be 4 or 8, not 3"),
        ({"bits": "4"}, "bits must be 4 or 8, not '4'"),
        ({"bits": True}, "bits must be 4 or 8, not True"),
        ({"group_size": 48}, "group_size must be 32, 64 or 128, not 48"),
        ({"embedding_bits": 2}, "embedding_bits must be 4, 8 or 16, not 2"),
        ({"output_bits": 32}, "output_bits must be 4, 8 or 16, not 32"),
        ({"zero_point": 1}, "missing or unknown keys: zero_point"),
    ],
)
def test_what_is_not_known_is_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        config_with({**STORED, **change})
    assert "\n" not in str(caught.value)


def test_other_shapes_of_it_are_refused() -> None:
    with pytest.raises(CheckpointError, match="missing or unknown keys: bits"):
        config_with({name: value for name, value in STORED.items() if name != "bits"})
    with pytest.raises(CheckpointError, match=r"quant_method \[\] is not supported"):
        config_with([])
    with pytest.raises(CheckpointError, match="exclude each other"):
        ModelConfig.from_dict({**CONFIG.to_dict(), "quantization_config": STORED, "quantization_bit": 4})
