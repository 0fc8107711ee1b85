"""The choice of device and dtype, the check of memory, and the placing of layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chatglm3.errors import DeviceError
from chatglm3.model import placement
from chatglm3.model.cache import KVCache
from chatglm3.model.config import CHATGLM3_6B, ModelConfig
from chatglm3.model.memory import container_free, free_memory
from chatglm3.model.placement import check_memory, choose_device, choose_dtype, place, plan, unit_bytes, weight_bytes
from chatglm3.model.quantization import Quantization
from model.small import CONFIG, random_model

CPU = torch.device("cpu")
GIB = 2**30


@pytest.mark.parametrize("bits", [0, 4, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_bytes_of_each_unit_are_those_of_its_tensors(bits: int, dtype: torch.dtype) -> None:
    config = replace(CONFIG, quantization_bit=bits)
    with torch.device("meta"):
        model = type(random_model())(config).to(dtype)
    for block in model.blocks:
        for module in block.modules():
            if "weight_scale" in dict(module.named_buffers(recurse=False)):
                module.weight_scale = torch.empty_like(module.weight_scale, dtype=torch.float16)  # as stored
    found = [
        sum(t.nbytes for t in module.state_dict().values()) for module in (model.transformer.embedding, *model.blocks)
    ]
    last = (model.transformer.encoder.final_layernorm, model.transformer.output_layer)
    found.append(sum(t.nbytes for module in last for t in module.state_dict().values()))
    assert unit_bytes(config, dtype) == found


@pytest.mark.parametrize(
    "quantization", [Quantization(4), Quantization(8, 64, 4, 16), Quantization(4, 128, 16, 8)], ids=str
)
def test_the_bytes_of_a_model_in_groups_are_those_of_its_tensors(quantization: Quantization) -> None:
    config = replace(CONFIG, quantization=quantization, hidden_size=40, ffn_hidden_size=50, padded_vocab_size=99)
    with torch.device("meta"):
        model = type(random_model())(config).half()
    last = (model.transformer.encoder.final_layernorm, model.transformer.output_layer)
    units = [[model.transformer.embedding], *([block] for block in model.blocks), last]
    found = [sum(t.nbytes for module in unit for t in module.state_dict().values()) for unit in units]
    assert unit_bytes(config, torch.float16) == found


def test_the_real_model_has_its_published_size() -> None:
    assert weight_bytes(CHATGLM3_6B, torch.float16) == 2 * 6_243_584_000
    assert weight_bytes(replace(CHATGLM3_6B, quantization_bit=4), torch.float16) / GIB == pytest.approx(3.65, abs=0.01)
    assert weight_bytes(replace(CHATGLM3_6B, quantization_bit=8), torch.float16) / GIB == pytest.approx(6.31, abs=0.01)


def test_one_device_takes_all_if_it_can() -> None:
    assert set(plan(CHATGLM3_6B, [8 * GIB, 24 * GIB, 16 * GIB], torch.float16)) == {1}


@pytest.mark.parametrize("budgets", [[8, 8], [11, 11], [3, 4, 10], [10, 1, 4], [2, 2, 2, 2, 2, 2, 2]])
def test_layers_are_spread_in_order_and_by_free_memory(budgets: list[int]) -> None:
    sizes = unit_bytes(CHATGLM3_6B, torch.float16)
    placed = plan(CHATGLM3_6B, [budget * GIB for budget in budgets], torch.float16)
    assert len(placed) == 30
    assert placed == sorted(placed)
    shares = []
    for device, budget in enumerate(budgets):
        taken = sum(size for size, at in zip(sizes, placed, strict=True) if at == device)
        assert taken <= budget * GIB
        shares.append(taken / (budget * GIB))
    assert max(shares) < sum(sizes) / (sum(budgets) * GIB) + 0.2  # no device full while another is nearly empty


def test_the_order_of_units_can_make_it_not_fit() -> None:
    sizes = unit_bytes(CHATGLM3_6B, torch.float16)
    with pytest.raises(DeviceError):
        plan(CHATGLM3_6B, [sizes[0] - 1] * 40, torch.float16)


def test_too_little_memory_names_the_numbers_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "free_memory", lambda device: int(11.2 * GIB))
    with pytest.raises(DeviceError, match=r"needs 23\.3 GiB as float32, 11\.2 GiB free on 1 device") as caught:
        check_memory(CHATGLM3_6B, torch.float32, [CPU])
    assert "\n" not in str(caught.value)
    check_memory(
        CHATGLM3_6B, torch.float32, [torch.device("cuda", 0), torch.device("cuda", 1), torch.device("cuda", 2)]
    )


def test_automatic_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_cpu(*, native: bool, free: int, config: ModelConfig = CHATGLM3_6B) -> torch.dtype:
        monkeypatch.setattr(placement, "_cpu_computes_bfloat16", lambda: native)
        monkeypatch.setattr(placement, "free_memory", lambda device: free * GIB)
        return choose_dtype(config, CPU)

    assert on_cpu(native=True, free=64) == torch.bfloat16
    assert on_cpu(native=False, free=64) == torch.float32
    assert on_cpu(native=False, free=16) == torch.bfloat16
    assert on_cpu(native=True, free=64, config=CONFIG) == torch.float32
    assert on_cpu(native=True, free=4, config=replace(CHATGLM3_6B, quantization=Quantization(4))) == torch.float32
    for free in (4, 16, 64):
        assert on_cpu(native=False, free=free, config=replace(CHATGLM3_6B, torch_dtype="float16")) != torch.float16
    cuda, mps = torch.device("cuda"), torch.device("mps")
    assert choose_dtype(CHATGLM3_6B, cuda) == torch.float16
    assert choose_dtype(replace(CHATGLM3_6B, torch_dtype="bfloat16"), cuda) == torch.bfloat16
    assert choose_dtype(replace(CHATGLM3_6B, extra={"dtype": "bfloat16"}), cuda) == torch.bfloat16
    assert choose_dtype(replace(CHATGLM3_6B, torch_dtype="bfloat16"), mps) == torch.float16


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", torch.float16, torch.float32])
def test_a_dtype_asked_for_is_taken(dtype: str | torch.dtype) -> None:
    assert choose_dtype(CONFIG, CPU, dtype) == (getattr(torch, dtype) if isinstance(dtype, str) else dtype)


@pytest.mark.parametrize("dtype", ["int8", "float", torch.int8, torch.float64])
def test_other_dtypes_are_refused(dtype: str | torch.dtype) -> None:
    with pytest.raises(DeviceError, match="not supported"):
        choose_dtype(CONFIG, CPU, dtype)


def test_vector_kernels_make_bfloat16_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    for isa, fast in (("avx512", True), ("avx2", True), ("portable", False), ("torch", False)):
        monkeypatch.setattr(placement.native, "isa", lambda isa=isa: isa)
        assert placement._cpu_computes_bfloat16() == fast


def test_the_cpu_is_asked_for_its_bfloat16_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement.native, "isa", lambda: "torch")
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    if "avx2" not in flags or not hasattr(torch.cpu, "get_capabilities"):
        pytest.skip("knows only x86 under Linux")
    assert placement._cpu_computes_bfloat16() == ("avx512_bf16" in flags or "amx_bf16" in flags)


def test_devices_that_do_not_exist_are_refused() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device().type in ("cpu", "cuda", "mps")
    for name in ("gpu", "cuda:99", "meta", "cpu:x"):
        with pytest.raises(DeviceError, match=name):
            choose_device(name)


def test_several_gpus_are_used_when_one_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(placement, "free_memory", lambda device: 8 * GIB)
    placed = place(CHATGLM3_6B, torch.float16, "auto")
    assert [placed[0], placed[-1]] == [torch.device("cuda", 0), torch.device("cuda", 1)]
    with pytest.raises(DeviceError):
        place(CHATGLM3_6B, torch.float16, "cuda")  # one device was asked for


def test_activations_follow_the_layers_to_other_devices() -> None:
    """The device "meta" stands for a second GPU: an operation on tensors of two devices is an error there as well."""
    model = random_model(dtype=torch.float32)
    model.blocks[1].to("meta")
    model.transformer.encoder.final_layernorm.to("meta")
    model.transformer.output_layer.to("meta")
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, :3] = False
    ids = torch.arange(18).view(2, 9)
    caches = [
        KVCache(CONFIG, 2, 16, torch.float32, [block.device for block in model.blocks]),
        model.new_concat_cache(2),
    ]
    for cache in caches:
        logits = model(ids, key_mask=mask, cache=cache).logits
        assert (logits.device.type, tuple(logits.shape)) == ("meta", (2, 9, 512))


def test_free_memory_is_what_the_system_says() -> None:
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        pytest.skip("reads /proc/meminfo")
    total = next(
        int(line.split()[1]) * 1024 for line in meminfo.read_text().splitlines() if line.startswith("MemTotal")
    )
    assert 0 < free_memory(CPU) < total


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert container_free(tmp_path) is None
    for name, text in {
        "memory.max": "1000\n",
        "memory.current": "700\n",
        "memory.stat": "anon 400\nfile 250\n",
    }.items():
        (tmp_path / name).write_text(text)
    assert container_free(tmp_path) == 550
    monkeypatch.setattr("chatglm3.model.memory.container_free", lambda cgroup: 550)
    assert free_memory(CPU) == 550
    (tmp_path / "memory.max").write_text("max\n")
    assert container_free(tmp_path) is None
