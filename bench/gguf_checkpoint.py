"""A ChatGLM3 checkpoint as a GGUF file, quantised to Q4_0 or Q8_0 with the `gguf` package's own rounding.

The blocks' matrices take the type asked for; the output layer and the embedding are Q8_0, as this project stores them.
There is no vocabulary in the file: the benchmark speaks in token ids.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from chatglm3.model.checkpoint import list_tensors, read_tensor
from chatglm3.model.config import ModelConfig
from chatglm3.model.shards import TensorInfo

_ROWS = 4096  # rows of a matrix that are quantised at once
_OUTSIDE = {
    "transformer.embedding.word_embeddings.weight": "token_embd.weight",
    "transformer.encoder.final_layernorm.weight": "output_norm.weight",
    "transformer.output_layer.weight": "output.weight",
}
_IN_A_BLOCK = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attention.query_key_value.weight": "attn_qkv.weight",
    "self_attention.query_key_value.bias": "attn_qkv.bias",
    "self_attention.dense.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.dense_h_to_4h.weight": "ffn_up.weight",  # gate and value in one, gate first, as llama.cpp reads it too
    "mlp.dense_4h_to_h.weight": "ffn_down.weight",
}


def write_gguf(checkpoint: Path, file: Path, kind: GGMLQuantizationType) -> None:
    """Write the half-precision `checkpoint` folder as `file`, its blocks in `kind` (Q4_0 or Q8_0)."""
    config = ModelConfig.from_pretrained(checkpoint)
    tensors = {_gguf_name(n): (n, info) for n, info in list_tensors(checkpoint).items() if not n.endswith("inv_freq")}
    part = file.with_suffix(".incomplete")
    writer = gguf.GGUFWriter(part, "chatglm")
    _add_metadata(writer, config, kind)
    for name, (_, info) in tensors.items():
        stored = _stored_as(name, info, kind)
        shape = gguf.quant_shape_to_byte_shape(info.shape, stored) if _is_block_type(stored) else info.shape
        dtype = np.dtype(np.uint8 if _is_block_type(stored) else np.float32)
        writer.add_tensor_info(name, shape, dtype, int(np.prod(shape)) * dtype.itemsize, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, (official, info) in tensors.items():
        stored = _stored_as(name, info, kind)
        writer.write_tensor_data(np.concatenate([gguf.quantize(rows, stored) for rows in _rows(official, info)]))
    writer.close()
    part.rename(file)


def _add_metadata(writer: gguf.GGUFWriter, config: ModelConfig, kind: GGMLQuantizationType) -> None:
    file_types = {GGMLQuantizationType.Q4_0: 2, GGMLQuantizationType.Q8_0: 7}
    writer.add_file_type(file_types[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config.seq_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.ffn_hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.multi_query_group_num)
    writer.add_layer_norm_rms_eps(config.layernorm_epsilon)
    writer.add_rope_dimension_count(config.rotary_dim)
    writer.add_rope_freq_base(10000.0 * config.rope_ratio)
    writer.add_vocab_size(config.padded_vocab_size)
    writer.add_tokenizer_model("no_vocab")


def _gguf_name(official: str) -> str:
    if official in _OUTSIDE:
        return _OUTSIDE[official]
    index, _, rest = official.removeprefix("transformer.encoder.layers.").partition(".")
    return f"blk.{index}.{_IN_A_BLOCK[rest]}"


def _stored_as(name: str, info: TensorInfo, kind: GGMLQuantizationType) -> GGMLQuantizationType:
    if len(info.shape) == 1:
        return GGMLQuantizationType.F32
    return kind if name.startswith("blk.") else GGMLQuantizationType.Q8_0


def _is_block_type(kind: GGMLQuantizationType) -> bool:
    return kind != GGMLQuantizationType.F32


def _rows(name: str, info: TensorInfo) -> Iterator[NDArray[np.float32]]:
    tensor = torch.empty(info.shape)
    read_tensor(name, info, tensor)
    for part in tensor.split(_ROWS):
        yield part.numpy()
