"""The official int8 and int4: quantisation of a loaded model with their arithmetic, and their use in groups.

Each row of a linear layer gets one scale, max|row| / 127 for int8 or / 7 for int4, in fp16; the quotient weight / scale
is rounded to fp16 before it is rounded to an integer, so a quantised official checkpoint holds exactly these integers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from chatglm3.errors import CheckpointError
from chatglm3.kernels.layout import pack
from chatglm3.model.linear import GroupedLinear, QuantizedLinear, unpack_int4
from chatglm3.model.lora import LoraLinear
from chatglm3.model.quantization import Quantization
from chatglm3.model.transformer import ChatGLMModel

_LARGEST = {8: 127, 4: 7}
_GROUP_SIZE = 32

_Layer = TypeVar("_Layer", nn.Linear, QuantizedLinear)


def quantize_linears(model: ChatGLMModel, bits: int) -> None:
    """Store the four linear layers of every block at `bits`, 8 or 4, in place; a LoRA update beside one stays as it is.

    Embedding, norms and output layer are not touched, as officially. Raises `CheckpointError` for other `bits`, a model
    that is quantised already, and for int4 of a layer with an odd number of inputs.
    """
    if bits not in _LARGEST:
        raise CheckpointError(f"quantisation to {bits!r} bits does not exist; use 8 or 4")
    stored = model.config.quantization_bit or (model.config.quantization and model.config.quantization.bits)
    if stored:
        raise CheckpointError(f"the model is quantised to {stored} bits already; load the original weights instead")
    layers = list(_layers(model, nn.Linear))
    odd = [name for _, name, layer in layers if bits == 4 and layer.in_features % 2]
    if odd:
        raise CheckpointError(f"int4 needs an even number of inputs, which {odd[0]} has not; use 8 bits")
    while layers:  # each layer is let go of as soon as it is replaced
        parent, name, layer = layers.pop()
        setattr(parent, name, _quantize(layer, bits))
    model.config = replace(model.config, quantization_bit=bits)


def group_official(model: ChatGLMModel) -> None:
    """Store official int8 and int4 layers in groups, in place: for kernels, which know that layout only.

    The integers stay, and the scale of a row becomes that of its groups, so each weight is exactly integer times scale;
    the official code rounds that product to fp16. Embedding and output layer stay as they are.
    """
    bits = model.config.quantization_bit
    layers = list(_layers(model, QuantizedLinear))
    while layers:
        parent, name, layer = layers.pop()
        setattr(parent, name, _group(layer))
    quantization = Quantization(bits, _GROUP_SIZE, embedding_bits=16, output_bits=16)
    model.config = replace(model.config, quantization_bit=0, quantization=quantization)


def quantize_rows(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Integers int8 [out, in] and fp16 scales [out] of `weight` [out, in]."""
    largest = _LARGEST[bits]
    half = weight.half()
    scale = half.abs().amax(dim=1) / largest
    quotient = (half / scale[:, None]).nan_to_num()  # a row of zeros has the scale 0
    return quotient.round().clamp(-largest, largest).to(torch.int8), scale


def pack_int4(integers: Tensor) -> Tensor:
    """Signed nibbles [out, n] as int8 [out, n / 2], element 2j in the high nibble, 2j + 1 in the low one."""
    high, low = integers[:, ::2], integers[:, 1::2]
    return (high << 4) | (low & 0x0F)


def _layers(model: ChatGLMModel, kind: type[_Layer]) -> Iterator[tuple[nn.Module, str, _Layer]]:
    """Each linear layer of the blocks that is stored as `kind`, with the module and the name that hold it."""
    for block in model.blocks:
        for parent in (block.self_attention, block.mlp):
            for name, layer in parent.named_children():
                if isinstance(layer, LoraLinear) and isinstance(layer.base, kind):
                    yield layer, "base", layer.base
                elif isinstance(layer, kind):
                    yield parent, name, layer


@torch.no_grad()
def _quantize(layer: nn.Linear, bits: int) -> QuantizedLinear:
    integers, scale = quantize_rows(layer.weight, bits)
    with torch.device("meta"):
        quantized = QuantizedLinear(layer.in_features, layer.out_features, bits, bias=False)
    quantized.weight = integers if bits == 8 else pack_int4(integers)
    quantized.weight_scale = scale
    quantized.bias = layer.bias
    return quantized.train(layer.training)


def _group(layer: QuantizedLinear) -> GroupedLinear:
    integers = layer.weight if layer.bits == 8 else unpack_int4(layer.weight)
    scales = torch.ones(layer.out_features, -(-layer.in_features // _GROUP_SIZE), dtype=torch.int8)
    with torch.device("meta"):
        grouped = GroupedLinear(layer.in_features, layer.out_features, layer.bits, _GROUP_SIZE, bias=False)
    grouped.packed = pack(integers, scales.to(integers.device), layer.weight_scale.float(), layer.bits, _GROUP_SIZE)
    grouped.bias = layer.bias
    return grouped.train(layer.training)
