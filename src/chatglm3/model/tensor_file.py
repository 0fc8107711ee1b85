"""Writing one `.safetensors` file: the header first, then values in any order, a few rows at a time.

If there are tensors of integers, as in a quantised model, the header's metadata has the sum of every tensor: what was
changed since can be noticed at the speed of reading it, also where the file is mapped and nobody looks at the values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from chatglm3.model.shards import DTYPES, SUMS, format_sum, sum_words

_ALIGNMENT = 64
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class TensorFile:
    """A file that is being written; use it in a `with` statement, and write every tensor whole.

    Values begin at a multiple of 64 bytes of the file, the tensors whose size is a multiple of 64 bytes before the
    others, so that the large ones are aligned when the file is mapped.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """`tensors` says names, shapes and dtypes; its values are not looked at, and may be on the device "meta"."""
        names = sorted(tensors, key=lambda name: tensors[name].nbytes % _ALIGNMENT != 0)  # stable: else in order
        self._starts: dict[str, int] = {}
        quantized = any(tensor.dtype in (torch.uint8, torch.int8) for tensor in tensors.values())
        self._sums = dict.fromkeys(names, 0) if quantized else {}
        metadata = {"format": "pt", **({SUMS: self._format_sums()} if self._sums else {})}
        header: dict[str, object] = {"__metadata__": metadata}
        size = 0
        for name in names:
            tensor, start = tensors[name], size
            size += tensor.nbytes
            header[name] = {
                "dtype": _NAMES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [start, size],
            }
            self._starts[name] = start
        encoded = json.dumps(header, separators=(",", ":")).encode()
        self._sums_at = 8 + encoded.find(json.dumps(self._format_sums()).encode())
        encoded += b" " * (-(8 + len(encoded)) % _ALIGNMENT)
        self._data = 8 + len(encoded)
        self._file = path.open("wb")
        self._file.write(len(encoded).to_bytes(8, "little") + encoded)

    def write(self, name: str, values: Tensor, first: int = 0) -> None:
        """Write `values` as the rows of the tensor `name` from `first` on."""
        row_bytes = values.nbytes // max(1, values.shape[0])
        data = values.cpu().contiguous().flatten().view(torch.uint8)
        if name in self._sums:
            self._sums[name] += sum_words(data)  # pieces are whole words, but for the last one
        self._file.seek(self._data + self._starts[name] + first * row_bytes)
        self._file.write(data.numpy().data)

    def _format_sums(self) -> str:
        """A JSON object as a string, whose length does not depend on the sums."""
        return json.dumps({name: format_sum(total) for name, total in self._sums.items()})

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self._sums:
                self._file.seek(self._sums_at)
                self._file.write(json.dumps(self._format_sums()).encode())
        finally:
            self._file.close()
