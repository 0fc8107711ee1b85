"""How a quantised checkpoint of this package is stored: the `quantization_config` of its config.json.

The official int8 and int4 are another format; config.json names them by `quantization_bit`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from chatglm3.errors import CheckpointError

GROUP_SIZES = (32, 64, 128)
_METHOD = {"quant_method": "chatglm3", "format_version": 1}
_UNQUANTISED = 16


@dataclass(frozen=True)
class Quantization:
    """Bits of the integers of the blocks' linear layers (4 or 8), and inputs that share a scale (32, 64 or 128).

    `embedding_bits` and `output_bits` are those of the embedding and the output layer: 4, 8, or 16 if they are kept as
    floating-point numbers. Raises `CheckpointError` for other numbers.
    """

    bits: int
    group_size: int = 32
    embedding_bits: int = 8
    output_bits: int = 8

    def __post_init__(self) -> None:
        _check("bits", self.bits, (4, 8))
        _check("group_size", self.group_size, GROUP_SIZES)
        _check("embedding_bits", self.embedding_bits, (4, 8, _UNQUANTISED))
        _check("output_bits", self.output_bits, (4, 8, _UNQUANTISED))

    @classmethod
    def from_dict(cls, data: object, source: str) -> Quantization:
        """Read a `quantization_config`; `CheckpointError` for a method, version or key that is not known here."""
        if not isinstance(data, Mapping) or data.get("quant_method") != _METHOD["quant_method"]:
            method = data.get("quant_method") if isinstance(data, Mapping) else data
            raise CheckpointError(
                f"{source}: quant_method {method!r} is not supported; load the original weights with quantize=4 or 8"
            )
        version = data.get("format_version")
        if version != _METHOD["format_version"]:
            raise CheckpointError(f"{source}: quantization format_version {version!r} is unknown; update chatglm3")
        values = {name: value for name, value in data.items() if name not in _METHOD}
        wanted = cls.__dataclass_fields__.keys()
        if values.keys() != wanted:
            wrong = ", ".join(sorted(map(str, values.keys() ^ wanted)))
            raise CheckpointError(f"{source}: quantization_config has missing or unknown keys: {wrong}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """The `quantization_config` of config.json."""
        return {**_METHOD, **asdict(self)}


def _check(name: str, value: object, allowed: tuple[int, ...]) -> None:
    if type(value) is not int or value not in allowed:
        choices = f"{', '.join(map(str, allowed[:-1]))} or {allowed[-1]}"
        raise CheckpointError(f"quantisation: {name} must be {choices}, not {value!r}")
