"""The weight files of a checkpoint directory: which tensors they hold, and their values a few rows at a time.

Headers are read without the values. A tensor is read in pieces, each through a fresh memory map: pages of a map count
as resident memory for as long as it lives, so a map kept open would hold the whole file beside the converted model.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from chatglm3.errors import CheckpointError

_CHUNK_BYTES = 64 << 20
_ROWS = 16
SUMS = "chatglm3.sums"
"""The key in a file's metadata: the sums of its tensors by name, in hexadecimal. Not every file has it."""
_FORMATS = (  # in order of preference: (index, file of an unsharded model)
    ("model.safetensors.index.json", "model.safetensors"),
    ("pytorch_model.bin.index.json", "pytorch_model.bin"),
)
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


class TensorInfo(NamedTuple):
    """What a header says of one tensor; `total` is the sum of its values as `format_sum` writes it, if it is there."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    file: Path
    total: str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of its values in the file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


def list_tensors(directory: str | Path) -> dict[str, TensorInfo]:
    """Every tensor of a checkpoint directory by name, from the headers alone.

    Raises `CheckpointError` for a missing folder, index or shard, a truncated file, and an index that contradicts its
    shards.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise CheckpointError(f"{directory}: no such folder; give the folder that holds config.json and the weights")
    for index, single in _FORMATS:
        if (directory / index).is_file():
            return _list_by_index(directory / index)
        if (directory / single).is_file():
            return list_file(directory / single)
    shards = sorted(p.name for p in directory.iterdir() if p.suffix in (".safetensors", ".bin"))
    if shards:
        index = _FORMATS[0][0] if shards[0].endswith(".safetensors") else _FORMATS[1][0]
        raise CheckpointError(f"{directory}: found {shards[0]} but no {index}; copy or download the index as well")
    raise CheckpointError(f"{directory}: no weights (model.safetensors, or shards with an index); download them again")


def list_file(file: Path) -> dict[str, TensorInfo]:
    """Every tensor of one `.safetensors` or `.bin` file by name."""
    if file.suffix == ".bin":
        return {name: TensorInfo(tuple(t.shape), t.dtype, file) for name, t in _load_bin(file).items()}
    try:
        with safe_open(file, "pt") as reader:
            sums = _read_sums(reader)
            slices = {name: reader.get_slice(name) for name in reader.keys()}  # noqa: SIM118 (not a mapping)
            return {
                n: TensorInfo(tuple(s.get_shape()), _dtype(s, n, file), file, sums.get(n)) for n, s in slices.items()
            }
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(file, error) from None


def map_tensors(file: Path, names: Sequence[str]) -> dict[str, Tensor]:
    """Tensors of a `.safetensors` file that stay in it: their pages are not copied, and can be let go of.

    Their sums are compared with those in the file's metadata, if it has them; `CheckpointError` if one differs. The
    file must not be changed in place while they live; replacing it by another does no harm.
    """
    try:
        with safe_open(file, "pt") as reader:
            sums = _read_sums(reader)
            tensors = {name: reader.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise _unreadable(file, error) from None
    for name in sums.keys() & tensors.keys():
        _compare(file, name, sum_words(tensors[name]), sums[name])
    return tensors


def sum_words(values: Tensor) -> int:
    """The sum of the bytes of `values` taken as 64-bit integers; what is left at the end counts as bytes."""
    data = values.contiguous().flatten().view(torch.uint8)
    words = data.numel() // 8 * 8
    return int(data[:words].view(torch.int64).sum()) + int(data[words:].sum())


def format_sum(total: int) -> str:
    """A sum modulo 2 ** 64 as a file's metadata has it: 16 digits."""
    return f"{total % 2**64:016x}"


def read_rows(name: str, info: TensorInfo) -> Iterator[tuple[slice, Tensor]]:
    """The values of one tensor: rows of the first dimension and their values, about 64 MB at a time.

    The number of rows is a multiple of 16, but for the last piece, so the pieces' sums add up. Let go of each piece
    before asking for the next, or its pages stay resident. Raises `CheckpointError` behind the last one if the sum is
    not the one that the file has.
    """
    found, row_bytes = 0, max(1, info.nbytes // info.shape[0])
    step = max(1, _CHUNK_BYTES // row_bytes // _ROWS) * _ROWS
    for start in range(0, info.shape[0], step):
        rows = slice(start, start + step)
        if info.file.suffix == ".bin":
            yield rows, _load_bin(info.file)[name][rows]
        else:
            with safe_open(info.file, "pt") as reader:
                values = reader.get_slice(name)[rows]
                if info.total is not None:
                    found += sum_words(values)
                yield rows, values
                del values  # lets go of the file's pages
    _compare(info.file, name, found, info.total)


def _compare(file: Path, name: str, found: int, written: str | None) -> None:
    if written is not None and format_sum(found) != written:
        raise CheckpointError(f"{file}: {name} has been changed since it was written; make or download it again")


def _read_sums(reader: Any) -> dict[str, str]:
    sums = json.loads((reader.metadata() or {}).get(SUMS, "{}"))
    if not isinstance(sums, dict):
        raise ValueError(f"{SUMS} is not an object")
    return sums


def _list_by_index(index: Path) -> dict[str, TensorInfo]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {
            name: index.with_name(Path(file).name) for name, file in weight_map.items()
        }  # never outside its folder
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CheckpointError(f"{index}: not an index of weights ({error!r}); download it again") from None
    shards = sorted(set(files.values()))
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise CheckpointError(f"{index.parent}: missing shard(s) {', '.join(missing)}; download them again")
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        tensors.update(list_file(shard))
    wrong = [name for name, file in files.items() if name not in tensors or tensors[name].file != file]
    if wrong:
        raise CheckpointError(
            f"{index}: {len(wrong)} tensor(s) are not in the shard it names, first {wrong[0]}; download the folder "
            "again"
        )
    return tensors


def _dtype(header: Any, name: str, file: Path) -> torch.dtype:
    dtype = header.get_dtype()
    if dtype not in DTYPES:
        raise CheckpointError(f"{file}: {name} is stored as {dtype}, which no ChatGLM3 model uses")
    return DTYPES[dtype]


def _load_bin(file: Path) -> dict[str, Tensor]:
    """The tensors of a `.bin` file, memory-mapped. Pickled code is never run: anything but tensors is refused."""
    try:
        data = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{file}: holds pickled Python objects beside tensors, which are never run; use the .safetensors files"
        ) from None
    except (RuntimeError, OSError, ValueError, EOFError) as error:
        raise _unreadable(file, error) from None
    if not isinstance(data, dict) or not all(isinstance(value, Tensor) for value in data.values()):
        raise CheckpointError(f"{file}: not a dictionary of tensors; use the .safetensors files")
    return data


def _unreadable(file: Path, error: Exception) -> CheckpointError:
    with file.open("rb") as opened:
        start = opened.read(40)
    if start.startswith(b"version https://git-lfs"):
        return CheckpointError(f"{file}: a git-lfs pointer, not the weights; run `git lfs pull` in its folder")
    if file.suffix == ".bin" and not start.startswith(b"PK"):
        return CheckpointError(f"{file}: not a file of tensors as torch.save writes it; use the .safetensors files")
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return CheckpointError(f"{file}: truncated or corrupt ({reason}); download it again")
