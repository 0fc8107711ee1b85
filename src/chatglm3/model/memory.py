"""How much memory a model may take on a device."""

from __future__ import annotations

import os
from pathlib import Path

import torch

_GPU_SHARE = 0.9  # of a GPU's free memory; the rest is left to the cache and the activations


def free_memory(device: torch.device) -> int:
    """Bytes free for weights on `device`; on a CPU within the limit of the container, if there is one."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * _GPU_SHARE)
    if device.type == "mps":
        return int((torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()) * _GPU_SHARE)
    machine = _machine_free()
    container = container_free(Path("/sys/fs/cgroup"))
    return machine if container is None else min(machine, container)


def container_free(cgroup: Path) -> int | None:
    """Bytes left under the memory limit of a Linux control group (version 2); None without a limit."""
    try:
        limit = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
        stat = dict(line.split() for line in (cgroup / "memory.stat").read_text(encoding="ascii").splitlines())
    except OSError:
        return None
    return None if limit == "max" else int(limit) - used + int(stat["file"])  # cached files give way


def _machine_free() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
