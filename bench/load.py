"""Loading a checkpoint of the real 6B width, in official shards, against reading its files once.

Random weights are written shard by shard (the 28 layers need 13 GB of disk); every measurement runs in a fresh process,
once with the files dropped from the page cache and once with them in it. Peak memory is the largest resident size of
the whole process, and what loading added to it.

    python bench/load.py                                   # 2 layers, about a minute
    python bench/load.py --layers 28 --folder /big/disk    # the real size
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

from chatglm3.errors import DeviceError
from chatglm3.model.checkpoint import list_tensors, load_model
from chatglm3.model.placement import check_memory
from chatglm3.model.saving import plan_shards, write_config, write_index
from chatglm3.model.transformer import ChatGLMModel
from random_model import real_config

SHARD_BYTES = 1_990_000_000  # the official shards are of 1.8 to 2 GB
GIB = 2**30


class Measured(NamedTuple):
    """Seconds to read the files and to load them; bytes of the model, of the process's peak, and of its growth."""

    read: float
    load: float
    model: int
    peak: int
    growth: int


def write_checkpoint(folder: Path, layers: int) -> None:
    config = real_config(layers)
    with torch.device("meta"):
        tensors = ChatGLMModel(config).half().state_dict()
    block = torch.randn(1 << 22).mul_(0.02).half()
    shards = plan_shards({name: tensor.nbytes for name, tensor in tensors.items()}, SHARD_BYTES)
    for file, names in shards.items():
        values = {name: block.repeat(tensors[name].numel() // block.numel() + 1) for name in names}
        part = {name: values[name][: tensors[name].numel()].reshape(tensors[name].shape) for name in names}
        save_file(part, folder / file, metadata={"format": "pt"})
    write_index(folder / "model.safetensors.index.json", shards, sum(tensor.nbytes for tensor in tensors.values()))
    write_config(folder / "config.json", config)


def drop_from_page_cache(folder: Path) -> None:
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_once(folder: Path) -> float:
    buffer, start = bytearray(1 << 24), time.perf_counter()
    for file in {info.file for info in list_tensors(folder).values()}:
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass
    return time.perf_counter() - start


def memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def measure(folder: Path, dtype: str, cold: bool) -> Measured:
    if cold:
        drop_from_page_cache(folder)
    read = read_once(folder)
    if cold:
        drop_from_page_cache(folder)
    before, start = memory("VmRSS"), time.perf_counter()
    model = load_model(folder, device="cpu", dtype=dtype)
    load = time.perf_counter() - start
    resident = sum(tensor.nbytes for tensor in model.state_dict().values())
    return Measured(read, load, resident, memory("VmHWM"), memory("VmHWM") - before)


def in_fresh_process(folder: Path, dtype: str, cold: bool) -> Measured:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measure, folder, dtype, cold).result()


def table_of(folder: Path, layers: int, dtypes: list[str], runs: int) -> Table:
    files = sum(info.nbytes for info in list_tensors(folder).values())
    table = Table(
        *(
            "dtype",
            "files",
            "read s",
            "load s",
            "load / read",
            "model GiB",
            "peak GiB",
            "peak / model",
            "growth / model",
        ),
        title=f"{layers} layers, {files / GIB:.2f} GiB of float16 files",
    )
    for dtype in dtypes:
        try:
            check_memory(real_config(layers), getattr(torch, dtype), [torch.device("cpu")])
        except DeviceError as error:
            table.caption = f"{dtype}: {error}"
            continue
        for cold in (True, False):
            results = [in_fresh_process(folder, dtype, cold) for _ in range(runs)]
            read, load, model, peak, growth = (statistics.median(values) for values in zip(*results, strict=True))
            row = f"{read:.2f}", f"{load:.2f}", f"{load / read:.2f}", f"{model / GIB:.2f}", f"{peak / GIB:.2f}"
            table.add_row(dtype, "on disk" if cold else "cached", *row, f"{peak / model:.2f}", f"{growth / model:.2f}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2, help="layers of the real width (28 in the real model)")
    parser.add_argument("--folder", type=Path, help="where to put the checkpoint while it is measured")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16", "float16"])
    parser.add_argument("--runs", type=int, default=1, help="the table shows the medians")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        write_checkpoint(Path(folder), options.layers)
        Console(width=120).print(table_of(Path(folder), options.layers, options.dtypes, options.runs))


if __name__ == "__main__":
    main()
