"""Quantised copies of checkpoints: what they hold, and that there is a whole one or none."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from chatglm3.errors import CheckpointError
from chatglm3.model.checkpoint import list_tensors, load_model, save_model
from chatglm3.model.quantization import Quantization
from chatglm3.model.quantize import quantize_linears
from chatglm3.model.quantize_checkpoint import quantize_checkpoint
from chatglm3.model.transformer import ChatGLMModel
from model.damage import changed_copy
from model.small import CONFIG, random_model

FOUR = Quantization(4)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


@pytest.mark.parametrize("quantization", [FOUR, Quantization(8, 64), Quantization(4, 128, 16, 4)], ids=str)
@pytest.mark.parametrize("layout", ["one", "shards", "bin"])
def test_a_copy_loads_as_what_quantising_while_loading_gives(
    layout: str, quantization: Quantization, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder: Path = request.getfixturevalue({"one": "saved", "shards": "sharded", "bin": "bin_folder"}[layout])
    quantize_checkpoint(folder, tmp_path / "out", quantization)
    copy = load_model(tmp_path / "out", device="cpu")
    assert copy.config.quantization == quantization
    assert files(tmp_path / "out") == {"config.json", "model.safetensors"}
    if quantization in (FOUR, Quantization(8)):
        loaded = load_model(folder, device="cpu", quantize=quantization.bits).state_dict()
        assert all(torch.equal(tensor, loaded[name]) for name, tensor in copy.state_dict().items())


def test_what_is_not_quantised_is_copied_as_it_is_stored(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(saved / name, tmp_path / "model")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (tmp_path / "model" / name).write_text(name)
    quantize_checkpoint(tmp_path / "model", tmp_path / "out", FOUR)
    stored, written = (load_file(folder / "model.safetensors") for folder in (saved, tmp_path / "out"))
    for name in [name for name in stored if "norm" in name or "bias" in name or "inv_freq" in name]:
        assert torch.equal(written[name], stored[name]) and written[name].dtype == stored[name].dtype
    assert [(tmp_path / "out" / name).read_text() for name in ("tokenizer.model", "tokenizer_config.json")] == [
        "tokenizer.model",
        "tokenizer_config.json",
    ]
    assert files(tmp_path) == {"model", "out"} | {
        f"{folder}/{name}"
        for folder in ("model", "out")
        for name in ("config.json", "model.safetensors", "tokenizer.model", "tokenizer_config.json")
    }


def test_values_begin_at_multiples_of_64_bytes(saved: Path, tmp_path: Path) -> None:
    quantize_checkpoint(saved, tmp_path / "out", FOUR)
    data = (tmp_path / "out/model.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert header.pop("__metadata__").keys() == {"format", "chatglm3.sums"}
    assert (8 + length) % 64 == 0
    large = [info["data_offsets"][0] for name, info in header.items() if info["dtype"] == "U8"]
    assert len(large) == 4 * CONFIG.num_layers + 2 and not any(start % 64 for start in large)


@pytest.mark.parametrize("quantization", [FOUR, Quantization(8, 128, 16, 4)], ids=str)
def test_one_changed_bit_is_noticed_in_every_tensor(
    quantization: Quantization, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("chatglm3.model.shards._CHUNK_BYTES", 1000)
        quantize_checkpoint(saved, tmp_path / "out", quantization)
        load_model(tmp_path / "out", device="cpu")
    load_model(tmp_path / "out", device="cpu")  # the sum is the same whatever the pieces
    file = tmp_path / "out/model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert header.pop("__metadata__")
    kinds = {name.rpartition(".")[2] for name in header}
    assert kinds == {"weight", "weight_scale", "row_scale", "bias", "inv_freq"}
    for name, info in header.items():
        start, end = info["data_offsets"]
        for place in (start, end - 2):
            changed = bytearray(data)
            changed[8 + length + place] ^= 1
            file.write_bytes(changed)
            with pytest.raises(CheckpointError, match=rf"{name} has been changed since it was written; make or"):
                load_model(tmp_path / "out", device="cpu")


def test_copies_with_sums_of_integers_alone_load(saved: Path, tmp_path: Path) -> None:
    quantize_checkpoint(saved, tmp_path, FOUR)
    file = tmp_path / "model.safetensors"
    with safe_open(file, "pt") as reader:
        sums: dict[str, str] = json.loads(reader.metadata()["chatglm3.sums"])
    tensors = load_file(file)
    integers = {name: total for name, total in sums.items() if not tensors[name].is_floating_point()}
    assert 0 < len(integers) < len(sums) == len(tensors)
    save_file(tensors, file, {"chatglm3.sums": json.dumps(integers)})
    load_model(tmp_path, device="cpu")
    save_file(tensors, file, {"chatglm3.sums": json.dumps(integers | {min(integers): "0" * 16})})
    with pytest.raises(CheckpointError, match=rf"{min(integers)} has been changed"):
        load_model(tmp_path, device="cpu")
    save_file(tensors, file, {"chatglm3.sums": "[]"})
    with pytest.raises(CheckpointError, match=r"corrupt \(chatglm3\.sums is not an object\)"):
        load_model(tmp_path, device="cpu")


def test_errors_and_progress_are_told(saved: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    written = quantize_checkpoint(saved, tmp_path / "out", FOUR, lambda *call: calls.append(call))
    total = sum(info.nbytes for info in list_tensors(saved).values())
    assert calls == sorted(calls) and calls[-1] == (total, total)
    assert written.nbytes == (tmp_path / "out/model.safetensors").stat().st_size
    linear = {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"}
    assert written.relative_error.keys() == linear | {"word_embeddings", "output_layer"}
    assert all((0.06 < error < 0.1) == (kind in linear) for kind, error in written.relative_error.items())


def test_an_empty_folder_is_taken(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    quantize_checkpoint(saved, Path(), FOUR)
    assert load_model(tmp_path / "out", device="cpu").config.quantization == FOUR


def grouped_already(saved: Path, folder: Path) -> None:
    quantize_checkpoint(saved, folder, FOUR)


def official_already(saved: Path, folder: Path) -> None:
    model = random_model()
    quantize_linears(model, 8)
    save_model(model, folder)


def lora_adapter(saved: Path, folder: Path) -> None:
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")


def prefix_only(saved: Path, folder: Path) -> None:
    folder.mkdir()
    shutil.copy(saved / "config.json", folder)
    save_file({"transformer.prefix_encoder.embedding.weight": torch.ones(2, 64)}, folder / "model.safetensors")


def not_finite(saved: Path, folder: Path) -> None:
    name = "transformer.encoder.layers.1.mlp.dense_4h_to_h.weight"
    changed_copy(saved, folder.parent, lambda tensors: tensors[name][3, 4:5].fill_(torch.nan)).rename(folder)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (grouped_already, "quantised to 4 bits already; take the original weights"),
        (official_already, "quantised to 8 bits already"),
        (lora_adapter, r"an adapter, not a model; quantise the model it belongs to"),
        (prefix_only, r"do not fit config\.json; .* missing"),
        (not_finite, r"dense_4h_to_h\.weight holds NaN or infinite values"),
        (lambda saved, folder: folder.mkdir(), r"no config\.json"),
    ],
)
def test_what_cannot_be_quantised_leaves_nothing(
    make: Callable[[Path, Path], None], message: str, saved: Path, tmp_path: Path
) -> None:
    make(saved, tmp_path / "model")
    with pytest.raises(CheckpointError, match=message) as caught:
        quantize_checkpoint(tmp_path / "model", tmp_path / "out", FOUR)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("what", ["folder", "file"])
def test_nothing_is_overwritten(what: str, saved: Path, tmp_path: Path) -> None:
    kept = tmp_path / "out" if what == "file" else tmp_path / "out/kept"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("kept")
    with pytest.raises(CheckpointError, match="exists and is not an empty folder; choose another one"):
        quantize_checkpoint(saved, tmp_path / "out", FOUR)
    assert kept.read_text() == "kept" and len(files(tmp_path)) == (1 if what == "file" else 2)


def test_a_full_disk_leaves_nothing(saved: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))  # the disk refuses what goes beyond
    try:
        with pytest.raises(CheckpointError, match=r"cannot write the model .* free some space"):
            quantize_checkpoint(saved, tmp_path / "out", FOUR)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_too_small_is_said_first(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(CheckpointError, match=r"0\.0 GB are needed and 0\.0 GB are free"):
        quantize_checkpoint(saved, tmp_path / "out", FOUR, lambda *call: pytest.fail("it began"))
    assert not list(tmp_path.iterdir())


_HALFWAY = """
import sys
from pathlib import Path
from chatglm3.model.quantization import Quantization
from chatglm3.model.quantize_checkpoint import quantize_checkpoint
def wait(done, total):
    if done > total / 2:
        print("halfway", flush=True)
        sys.stdin.read()
quantize_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), Quantization(4), wait)
"""


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_ended_halfway_leaves_no_model(ending: signal.Signals, saved: Path, tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", _HALFWAY, str(saved), str(tmp_path / "out")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(arguments, **pipes) as process:
        assert process.stdout is not None and process.stdout.readline() == b"halfway\n"
        assert (tmp_path / ".out.incomplete/model.safetensors").is_file()
        process.send_signal(ending)
        assert process.wait(60) != 0
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.iterdir()) or ending == signal.SIGKILL
    quantize_checkpoint(saved, tmp_path / "out", FOUR)  # what is left does not hinder the next attempt
    assert load_model(tmp_path / "out", device="cpu").config.quantization == FOUR
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


_PEAK = """
import sys
from pathlib import Path
from chatglm3.model import shards
from chatglm3.model.quantization import Quantization
from chatglm3.model.quantize_checkpoint import quantize_checkpoint
shards._CHUNK_BYTES = 2 << 20
def peak():
    return 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
small, large, out = map(Path, sys.argv[1:])
quantize_checkpoint(small, out / "small", Quantization(4))
before = peak()
quantize_checkpoint(large, out / "large", Quantization(4))
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_neither_model_is_in_memory(saved: Path, tmp_path: Path) -> None:
    with torch.device("meta"):
        model = ChatGLMModel(replace(CONFIG, hidden_size=2048, padded_vocab_size=16_384)).half()
    model.to_empty(device="cpu")
    for tensor in model.state_dict().values():
        tensor.fill_(0.01)
    large = tmp_path / "model"
    save_model(model, large)
    arguments = [sys.executable, "-c", _PEAK, str(saved), str(large), str(tmp_path)]
    grown = int(subprocess.run(arguments, capture_output=True, text=True, check=True).stdout)
    table = model.transformer.embedding.word_embeddings.weight
    assert grown < 40 << 20 < table.nbytes < 80 << 20
