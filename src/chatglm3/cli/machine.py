"""What this machine has: versions, processor, devices, the caches of models."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CacheNotFound, constants, scan_cache_dir

from chatglm3.model.memory import free_memory

_PACKAGES = ("torch", "numpy", "safetensors", "sentencepiece", "huggingface-hub", "typer", "rich", "prompt-toolkit")


def package_versions() -> dict[str, str | None]:
    """The version of every package that chatglm3 works with; None where it is missing."""
    versions: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return versions


def processor() -> dict[str, Any]:
    """The CPU: its name, cores, the threads that torch uses, and what torch says of its instructions."""
    found: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return {
        "name": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "features": sorted(name for name, value in found.items() if value is True),
    }


def devices() -> list[torch.device]:
    """Every device a model can be on."""
    found = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]
    return [*found, torch.device("mps")] if torch.backends.mps.is_available() else found


def describe_device(device: torch.device) -> dict[str, Any]:
    """A device's name, and the memory that is free for weights."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"device": str(device), "name": name, "free_bytes": free_memory(device)}


def model_cache() -> dict[str, Any]:
    """Hugging Face's cache: where it is, what is free there, and the ChatGLM3 models in it."""
    folder = Path(constants.HF_HUB_CACHE)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return {"folder": str(folder), "free_bytes": shutil.disk_usage(existing).free, "models": dict(_cached(folder))}


def _cached(folder: Path) -> Iterator[tuple[str, int]]:
    try:
        repositories = scan_cache_dir(folder).repos
    except CacheNotFound:
        return
    for repository in sorted(repositories, key=lambda found: found.repo_id):
        if any(_is_chatglm(revision.snapshot_path) for revision in repository.revisions):
            yield repository.repo_id, repository.size_on_disk


def _is_chatglm(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("model_type") == "chatglm"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
