"""Changing the files of a checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor


def change_json(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def change_tensors(file: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    change(tensors)
    save_file(tensors, file)


def changed_copy(saved: Path, tmp_path: Path, change: Callable[[dict[str, Tensor]], Any]) -> Path:
    folder = tmp_path / "damaged"
    shutil.copytree(saved, folder)
    change_tensors(folder / "model.safetensors", change)
    return folder
