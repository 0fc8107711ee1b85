"""`chatglm3 info`: what a model is, what it can do and how much memory it needs, without loading it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer

from chatglm3.cli.options import Json, ModelArgument
from chatglm3.cli.output import print_json


def command(model: ModelArgument, *, as_json: Json = False) -> None:
    """Show what a model is, what it can do and how much memory it needs.

    Only config.json and the headers of the weights are read. Of a model on Hugging Face that is not here, only the
    JSON files are fetched.
    """
    record = describe_model(model, _find(model))
    if as_json:
        print_json(record)
    else:
        for name, value in _lines(record):
            typer.echo(f"{name:<18}{value}")


def describe_model(name: str, folder: Path) -> dict[str, Any]:
    """What `info --json` prints; sizes in bytes. Raises `CheckpointError` if the folder has no ChatGLM3 config."""
    from chatglm3.capabilities import capabilities_of
    from chatglm3.cli.memory import cache_by_context, weights_by_form
    from chatglm3.model.config import ModelConfig

    config = ModelConfig.from_pretrained(folder)
    can = capabilities_of(name, config)
    return {
        "model": name,
        "folder": str(folder),
        "kind": "chat" if can.chat else "base",
        "tools": can.tools,
        "context": can.context,
        "rope_ratio": config.rope_ratio,
        "parameters": config.parameter_count,
        "layers": config.num_layers,
        "hidden_size": config.hidden_size,
        "quantization_bit": config.quantization_bit,
        "quantization": config.quantization and config.quantization.to_dict(),
        "vocabulary": config.padded_vocab_size,
        "files": _files(folder),
        "weights_bytes": weights_by_form(config),
        "kv_cache_bytes_per_token": config.kv_bytes_per_token,
        "kv_cache_bytes": cache_by_context(config),
    }


def _files(folder: Path) -> dict[str, Any]:
    """Which dtypes are stored, in how many tensors and bytes, and what is wrong with the files."""
    from chatglm3.errors import CheckpointError
    from chatglm3.model.checkpoint import list_tensors

    tensors, problem = {}, None
    try:
        tensors = list_tensors(folder)
        if not (folder / "tokenizer.model").is_file():
            problem = f"{folder}: no tokenizer.model; download it again"
    except CheckpointError as error:
        problem = str(error)
    return {
        "complete": problem is None,
        "problem": problem,
        "tensors": len(tensors),
        "bytes": sum(info.nbytes for info in tensors.values()),
        "dtypes": sorted({str(info.dtype).removeprefix("torch.") for info in tensors.values()}),
    }


def _find(model: str) -> Path:
    """The folder of a model, without fetching weights."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    from chatglm3.errors import DownloadError
    from chatglm3.model.hub import resolve

    if Path(model).expanduser().is_dir() or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", model):
        if model.startswith("modelscope:"):
            raise DownloadError(f"{model}: give the folder that `chatglm3 download {model}` prints")
        return resolve(model)
    try:
        return Path(snapshot_download(model, allow_patterns="*.json"))
    except (HfHubHTTPError, LocalEntryNotFoundError):
        raise DownloadError(
            f"{model}: not on this disk, and its config.json cannot be fetched; check the name and the connection"
        ) from None


def _lines(record: dict[str, Any]) -> list[tuple[str, str]]:
    from chatglm3.cli.memory import format_bytes

    files = record["files"]
    stored = f"{', '.join(files['dtypes'])} in {files['tensors']} tensors, {format_bytes(files['bytes'])}"
    return [
        ("model", record["model"]),
        ("folder", record["folder"]),
        ("kind", f"{record['kind']}, {'calls tools' if record['tools'] else 'no tools'}"),
        ("context", f"{record['context']:,} tokens (rope_ratio {record['rope_ratio']:g})"),
        ("parameters", f"{record['parameters']:,} in {record['layers']} layers{_quantized(record)}"),
        ("on disk", stored if files["tensors"] else "no weights"),
        ("files", "complete" if files["complete"] else files["problem"]),
        *((f"as {form}", format_bytes(size)) for form, size in record["weights_bytes"].items()),
        *((f"{int(n):,} tokens", f"{format_bytes(size)} more") for n, size in record["kv_cache_bytes"].items()),
    ]


def _quantized(record: dict[str, Any]) -> str:
    if record["quantization"]:
        return ", quantised to int{bits} in groups of {group_size}".format(**record["quantization"])
    return f", quantised to int{record['quantization_bit']}" if record["quantization_bit"] else ""
