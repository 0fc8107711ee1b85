"""A computed prefix on disk: keys, values and token ids as safetensors, for the weights they were computed with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from chatglm3.errors import CheckpointError

_FORMAT, _VERSION = "chatglm3.prefix", "1"


def save_prefix(path: Path, ids: Sequence[int], state: Sequence[Tensor], fingerprint: str, about: str) -> None:
    """Write a temporary file and rename it; `about` is the caller's own text."""
    tensors = {f"layer.{i}": layer.contiguous() for i, layer in enumerate(state)}
    metadata = {
        "format": _FORMAT,
        "version": _VERSION,
        "fingerprint": fingerprint,
        "token_ids": json.dumps(list(ids)),
        "about": about,
        "sha256": _digest(tensors),
    }
    temporary = path.with_name(path.name + ".incomplete")
    try:
        save_file(tensors, temporary, metadata)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path}: cannot save the prefix ({error}); free some space or choose another place"
        ) from None


def load_prefix(path: Path, fingerprint: str) -> tuple[list[int], list[Tensor], str]:
    """Token ids, each layer's keys and values, and the caller's text; CheckpointError if it is of other weights."""
    try:
        with safe_open(path, "pt") as reader:
            metadata: Mapping[str, str] = reader.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise CheckpointError(f"{path} is not a saved prefix; save one with prefix.save()")
            if metadata["version"] != _VERSION:
                raise CheckpointError(
                    f"{path} has version {metadata['version']}, this package reads {_VERSION}; save it again"
                )
            if metadata["fingerprint"] != fingerprint:
                raise CheckpointError(
                    f"{path} was computed with other weights, or in another dtype; compute and save it again"
                )
            state = [reader.get_tensor(f"layer.{i}") for i in range(len(reader.keys()))]
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot read the prefix ({error}); compute and save it again") from None
    if metadata["sha256"] != _digest({f"layer.{i}": layer for i, layer in enumerate(state)}):
        raise CheckpointError(f"{path} is damaged; compute and save it again")
    return json.loads(metadata["token_ids"]), state, metadata["about"]


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors.values():
        digest.update(tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
