"""The shape of a ChatGLM3 network: `config.json`, read strictly and kept whole.

Field names, defaults and meanings are those of the official configuration class, where several defaults differ from the
released model (`multi_query_attention` is false by default), so a file is always read and never guessed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

from chatglm3.errors import CheckpointError, ContextLengthError
from chatglm3.model.quantization import Quantization

_REQUIRED = (
    "num_layers",
    "padded_vocab_size",
    "hidden_size",
    "ffn_hidden_size",
    "kv_channels",
    "num_attention_heads",
    "seq_length",
)
# Options of the official class that no ChatGLM3 checkpoint uses; the network is written for these values only.
_FIXED = {
    "multi_query_attention": True,
    "rmsnorm": True,
    "post_layer_norm": True,
    "add_bias_linear": False,
    "apply_residual_connection_post_layernorm": False,
    "tie_word_embeddings": False,
    "fp32_residual_connection": False,
}
_OFFICIAL_DEFAULTS = {**_FIXED, "multi_query_attention": False}
_GLM4_VOCABULARY = 151552
_QUANTIZATION = "quantization_config"


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the network.

    `kv_channels` is the width of one head, `multi_query_group_num` the number of key/value heads, `seq_length` the
    number of positions of the rotary table (the longest context) and `rope_ratio` the factor on the rotary base of
    10,000 (1 for 6B and Base, 50 for 32K, 500 for 128K). `quantization_bit` is 8 or 4 in an official quantised
    checkpoint, `quantization` (in the file: `quantization_config`) is set in one of this package. `extra` keeps every
    other key of the file.
    """

    num_layers: int
    padded_vocab_size: int
    hidden_size: int
    ffn_hidden_size: int
    kv_channels: int
    num_attention_heads: int
    seq_length: int
    multi_query_group_num: int = 1
    add_qkv_bias: bool = False
    layernorm_epsilon: float = 1e-5
    rope_ratio: float = 1
    quantization_bit: int = 0
    quantization: Quantization | None = None
    pre_seq_len: int | None = None
    prefix_projection: bool = False
    torch_dtype: str = "float16"
    extra: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in (*_REQUIRED, "multi_query_group_num"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise CheckpointError(f"config.json: {name} must be a positive whole number, not {value!r}")
        if self.num_attention_heads % self.multi_query_group_num:
            raise CheckpointError(
                f"config.json: num_attention_heads ({self.num_attention_heads}) is not a multiple of "
                f"multi_query_group_num ({self.multi_query_group_num})"
            )
        if self.quantization_bit not in (0, 4, 8):
            raise CheckpointError(f"config.json: quantization_bit must be 0, 4 or 8, not {self.quantization_bit!r}")
        if self.quantization_bit and self.quantization:
            raise CheckpointError("config.json: quantization_bit and quantization_config exclude each other")
        object.__setattr__(self, "extra", MappingProxyType(dict(self.extra)))

    @property
    def rotary_dim(self) -> int:
        """Dimensions of a head that rotate: the first half."""
        return self.kv_channels // 2

    @property
    def qkv_size(self) -> int:
        """Rows of the fused projection: all query heads, then the key heads, then the value heads."""
        return (self.num_attention_heads + 2 * self.multi_query_group_num) * self.kv_channels

    @property
    def kv_bytes_per_token(self) -> int:
        """Key/value cache in bytes for one token at two bytes a number."""
        return self.num_layers * 2 * self.multi_query_group_num * self.kv_channels * 2

    @property
    def parameter_count(self) -> int:
        """Number of weights, the rotary buffer not counted."""
        h, f = self.hidden_size, self.ffn_hidden_size
        attention = self.qkv_size * (h + self.add_qkv_bias) + h * self.num_attention_heads * self.kv_channels
        return self.num_layers * (attention + 3 * h * f + 2 * h) + 2 * self.padded_vocab_size * h + h

    def context_limit(self, max_context: int | None) -> int:
        """The longest prompt and answer together: `max_context`, at most `seq_length`; None is `seq_length`."""
        if max_context is None:
            return self.seq_length
        if not isinstance(max_context, int) or not 1 <= max_context <= self.seq_length:
            raise ContextLengthError(
                f"max_context must be a whole number from 1 to this model's {self.seq_length}, not {max_context!r}"
            )
        return max_context

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], source: str = "config.json") -> ModelConfig:
        """Read the keys of a config.json; `CheckpointError` says what is missing or not supported."""
        _refuse_other_models(data, source)
        missing = [name for name in _REQUIRED if name not in data]
        if missing:
            raise CheckpointError(f"{source}: missing field(s) {', '.join(missing)}; is this a ChatGLM3 checkpoint?")
        for name, wanted in _FIXED.items():
            if data.get(name, _OFFICIAL_DEFAULTS[name]) != wanted:
                raise CheckpointError(f"{source}: {name} must be {json.dumps(wanted)}; no ChatGLM3 model differs")
        known = {f.name for f in fields(cls)} - {"extra", "quantization"}
        values = {name: data[name] for name in known if data.get(name) is not None}
        stored = data.get(_QUANTIZATION)
        quantization = None if stored is None else Quantization.from_dict(stored, source)
        extra = {name: value for name, value in data.items() if name not in known | {_QUANTIZATION}}
        return cls(**values, quantization=quantization, extra=extra)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> ModelConfig:
        """Read `config.json` of a checkpoint directory."""
        path = Path(directory) / "config.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(f"{path.parent}: no config.json; is this a model directory?") from None
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{path}: cannot be read as JSON ({error})") from None
        if not isinstance(data, dict):
            raise CheckpointError(f"{path}: a JSON object was expected, found {type(data).__name__}")
        return cls.from_dict(data, str(path))

    def to_dict(self) -> dict[str, Any]:
        """The config.json of this model: the keys it was read from, with the fields of this object."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("extra", "quantization")}
        optional = {"rope_ratio": 1, "quantization_bit": 0, "pre_seq_len": None, "prefix_projection": False}
        kept = {name: v for name, v in values.items() if name not in optional or v != optional[name]}
        if self.quantization is not None:
            kept[_QUANTIZATION] = self.quantization.to_dict()
        return {"model_type": "chatglm", "architectures": ["ChatGLMModel"], **_FIXED, **self.extra, **kept}


def _refuse_other_models(data: Mapping[str, Any], source: str) -> None:
    model_type = data.get("model_type")
    if model_type in ("glm", "glm4") or data.get("padded_vocab_size") == _GLM4_VOCABULARY:
        raise CheckpointError(f"{source}: this is a GLM-4 model, not ChatGLM3; load it with transformers' GLM classes")
    if model_type != "chatglm":
        raise CheckpointError(f"{source}: model_type is {model_type!r}, not 'chatglm'; this is not a ChatGLM3 model")
    if "position_encoding_2d" in data or "inner_hidden_size" in data:
        raise CheckpointError(f"{source}: this is the first ChatGLM-6B, whose network differs from ChatGLM3")


CHATGLM3_6B = ModelConfig(
    num_layers=28,
    padded_vocab_size=65024,
    hidden_size=4096,
    ffn_hidden_size=13696,
    kv_channels=128,
    num_attention_heads=32,
    seq_length=8192,
    multi_query_group_num=2,
    add_qkv_bias=True,
)
"""The shape of ChatGLM3-6B."""
