"""When and on what a report was made."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import chatglm3
from chatglm3.chat import ChatGLM

PACKAGES = ("torch", "numpy", "sentencepiece")


def about_this_run() -> dict[str, str]:
    """Date, machine and versions."""
    numbers = {"chatglm3": chatglm3.__version__, "Python": platform.python_version()}
    numbers |= {name: version(name) for name in PACKAGES}
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{_processor()}, {os.cpu_count()} cores{_threads()}, {platform.system()}",
        "versions": ", ".join(f"{name} {number}" for name, number in numbers.items()),
    }


def about_model(glm: ChatGLM, adapter: str | None = None) -> str:
    """A model's size, dtype, device and the fingerprint of its weights, those of `adapter` among them."""
    dtype = str(glm.model.dtype).removeprefix("torch.")
    size = f"{glm.model.config.parameter_count:,} parameters"
    fingerprint = glm.engine.fingerprint(glm.engine.adapters.find(adapter))
    weights = "weights" if adapter is None else "weights with the adapter"
    return f"{size}, {dtype}, {glm.model.device}, {weights} {fingerprint}"


def _threads() -> str:
    threads = os.environ.get("OMP_NUM_THREADS")
    return f" (OMP_NUM_THREADS={threads})" if threads else ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
