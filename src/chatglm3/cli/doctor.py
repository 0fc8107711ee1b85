"""`chatglm3 doctor`: what this machine has, what fits on it, and whether a model answers."""

from __future__ import annotations

import platform
from typing import Any

import typer

import chatglm3
from chatglm3.cli.options import Json
from chatglm3.cli.output import print_json


def command(*, as_json: Json = False) -> None:
    """Show versions, devices, memory and caches, and test a model.

    Says also which forms of the 6B model fit into memory. The exit status is 1 if the test fails.
    """
    record = examine()
    if as_json:
        print_json(record)
    else:
        for name, value in _lines(record):
            typer.echo(f"{name:<12}{value}")
    if not record["self_test"]["passed"]:
        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """What `doctor --json` prints; sizes in bytes."""
    from chatglm3.cli import machine
    from chatglm3.cli.memory import weights_by_form
    from chatglm3.cli.self_test import self_test
    from chatglm3.kernels import native
    from chatglm3.model.config import CHATGLM3_6B
    from chatglm3.model.placement import choose_device, choose_dtype

    chosen = choose_device()
    devices = [machine.describe_device(device) for device in machine.devices()]
    free = sum(device["free_bytes"] for device in devices if device["device"].startswith(chosen.type))
    return {
        "chatglm3": chatglm3.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": machine.package_versions(),
        "cpu": machine.processor(),
        "devices": devices,
        "chosen_device": chosen.type,
        "chosen_dtype_6b": str(choose_dtype(CHATGLM3_6B, chosen)).removeprefix("torch."),
        "kernels": {"chosen": native.isa(), "supported": native.supported(), "built": native.built()},
        "cache": machine.model_cache(),
        "fits_6b": {form: {"bytes": size, "fits": size <= free} for form, size in weights_by_form(CHATGLM3_6B).items()},
        "self_test": self_test(),
    }


def _lines(record: dict[str, Any]) -> list[tuple[str, str]]:
    from chatglm3.cli.memory import format_bytes

    cpu, cache, test = record["cpu"], record["cache"], record["self_test"]
    packages = (f"{name} {found or 'missing'}" for name, found in record["packages"].items())
    cached = (f"{name} ({format_bytes(size)})" for name, size in cache["models"].items())
    return [
        ("chatglm3", f"{record['chatglm3']}, Python {record['python']}, {record['platform']}"),
        ("packages", ", ".join(packages)),
        ("cpu", f"{cpu['name']}: {cpu['cores']} cores, {cpu['threads']} threads; {_vector_units(cpu)}"),
        *(("device", f"{d['name']}: {format_bytes(d['free_bytes'])} free") for d in record["devices"]),
        ("kernels", _kernels(record["kernels"])),
        ("6B model", f"on {record['chosen_device']} as {record['chosen_dtype_6b']}"),
        *((f"  {form}", _fit(fit)) for form, fit in record["fits_6b"].items()),
        ("cache", f"{cache['folder']}: {format_bytes(cache['free_bytes'])} free on its disk"),
        ("  models", ", ".join(cached) or "none"),
        ("self-test", f"{'passed' if test['passed'] else 'FAILED'}: {test['what']}"),
    ]


def _vector_units(cpu: dict[str, Any]) -> str:
    wide = ("avx2", "avx512", "amx", "neon", "sve", "bf16", "i8mm")
    return " ".join(name for name in cpu["features"] if name.startswith(wide)) or "no vector units known"


def _kernels(kernels: dict[str, Any]) -> str:
    if not kernels["built"]:
        return "torch only: installed without the native kernels (install a C++ compiler, then the package again)"
    return f"{kernels['chosen']} (this machine runs {', '.join(kernels['supported'])})"


def _fit(form: dict[str, Any]) -> str:
    from chatglm3.cli.memory import format_bytes

    return f"{format_bytes(form['bytes'])} of weights: {'fits' if form['fits'] else 'does not fit'}"
