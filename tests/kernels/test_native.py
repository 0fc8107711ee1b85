from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from isas import NATIVE, needs_native, on_each
from weights import random_weight

from chatglm3.errors import DeviceError
from chatglm3.kernels import native, ops

Use = Callable[[str], None]


@on_each
def test_the_environment_chooses(isa: str, use: Use) -> None:
    use(isa)
    assert native.isa() == isa
    assert native.runs_on(torch.zeros(1))


def test_torch_can_be_chosen(use: Use) -> None:
    use("torch")
    assert native.isa() == "torch"
    assert not native.runs_on(torch.zeros(1))


def test_an_unknown_name_is_refused(use: Use) -> None:
    use("avx1024")
    with pytest.raises(DeviceError, match=r"CHATGLM3_KERNELS=avx1024 cannot run here; this machine runs .*torch"):
        native.isa()


@needs_native
def test_the_fastest_comes_first() -> None:
    order = ["avx512", "avx2", "portable"]
    assert sorted(NATIVE, key=order.index) == NATIVE
    assert "portable" in NATIVE


def test_no_kernels_without_the_extension(monkeypatch: pytest.MonkeyPatch, use: Use) -> None:
    monkeypatch.setattr(native, "find_spec", lambda name: None if name.endswith("._native") else find_spec(name))
    assert native.supported() == ["torch"]
    use("avx2")
    with pytest.raises(DeviceError, match="the native kernels are not built"):
        native.isa()


@needs_native
def test_a_wrong_name_is_one_line_on_the_command_line() -> None:
    result = subprocess.run(
        [sys.executable, "-c", "from chatglm3.cli import main; main()", "complete", "你好", "--model", "nano-base"],
        capture_output=True,
        text=True,
        env={"CHATGLM3_KERNELS": "sse9", "PATH": "", "HOME": "/nonexistent"},
        check=False,
    )
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "CHATGLM3_KERNELS=sse9 cannot run here" in result.stderr


@on_each
@pytest.mark.parametrize("width", [1, 7, 64, 131])
def test_rms_norm(isa: str, width: int, use: Use) -> None:
    x, weight = torch.randn(2, 3, width), torch.rand(width)
    use("torch")
    expected = ops.rms_norm(x, weight, 1e-5)
    use(isa)
    torch.testing.assert_close(ops.rms_norm(x, weight, 1e-5), expected, rtol=1e-5, atol=1e-6)


@on_each
def test_add(isa: str, use: Use) -> None:
    use(isa)
    a, b = torch.randn(2, 20000, 3).transpose(1, 2), torch.randn(2, 3, 20000)
    assert torch.equal(ops.add(a, b), a + b)


@on_each
@pytest.mark.parametrize("width", [1, 7, 64, 131])
def test_swiglu(isa: str, width: int, use: Use) -> None:
    x = torch.randn(3, 2 * width) * 20
    x[0, 0], x[1, 0], x[2, 0] = 1e4, -1e4, float("nan")
    use("torch")
    expected = ops.swiglu(x)
    use(isa)
    torch.testing.assert_close(ops.swiglu(x), expected, rtol=1e-5, atol=1e-30, equal_nan=True)


@on_each
def test_rope_of_a_slice_of_the_projection(isa: str, use: Use) -> None:
    qkv = torch.randn(1, 5, 10, 24)
    table = ops.rope_table(9, 12, 10000.0, torch.float32, torch.device("cpu"))[None, 3:8]
    use("torch")
    expected = ops.apply_rope(qkv[:, :, 2:7], table)
    use(isa)
    torch.testing.assert_close(ops.apply_rope(qkv[:, :, 2:7], table), expected, rtol=1e-6, atol=1e-6)


@on_each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("heads", "groups", "width", "count"), [(32, 2, 128, 300), (6, 2, 20, 1), (5, 1, 7, 33)])
def test_attention_of_one_token(
    isa: str, batch: int, heads: int, groups: int, width: int, count: int, dtype: torch.dtype, use: Use
) -> None:
    q = (torch.randn(batch, 1, heads, width) * 3).to(dtype)
    cache = torch.randn(2, batch, groups, count + 5, width).to(dtype)[:, :, :, :count]
    use("torch")
    expected = ops.attend(q.float(), *cache.float())
    use(isa)
    result = ops.attend(q, *cache)
    assert result.dtype == dtype
    step = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    torch.testing.assert_close(result.float(), expected, rtol=step, atol=step)


@needs_native
def test_what_does_not_fit_is_refused() -> None:
    weight = random_weight(torch.Generator().manual_seed(0), 20, 40, 4, 32)
    x, bias = torch.zeros(2, 40), torch.zeros(20)
    keys = torch.zeros(1, 2, 5, 16)
    for attempt in (
        lambda: native.grouped_linear(x[:, :39], weight, bias),
        lambda: native.grouped_linear(x, weight, bias[:19]),
        lambda: native.dense_linear(x, torch.zeros(20, 41), None),
        lambda: native.rms_norm(x, torch.ones(39), 1e-5),
        lambda: native.add(x, x[:1]),
        lambda: native.apply_rope(torch.zeros(1, 3, 2, 8), torch.zeros(1, 2, 4, 2)),
        lambda: native.apply_rope(torch.zeros(1, 3, 2, 8), torch.zeros(1, 3, 5, 2)),
        lambda: native.attend(torch.zeros(1, 1, 4, 16), keys, keys[:, :, :4]),
        lambda: native.attend(torch.zeros(1, 1, 4, 17), keys, keys),
    ):
        with pytest.raises(ValueError, match=r"must be \[.*\], not \["):
            attempt()


@pytest.mark.parametrize("size", [10, 32768, 65024, 600_000])
def test_conversion_in_pieces(size: int) -> None:
    x = torch.randn(2, size)[:, : size - 3]
    assert torch.equal(native.convert(x, torch.bfloat16), x.bfloat16())
    assert torch.equal(native.convert(x.bfloat16(), torch.float32), x.bfloat16().float())


@on_each
def test_a_query_that_is_not_a_number_is_not_hidden(isa: str, use: Use) -> None:
    use(isa)
    q, cache = torch.zeros(1, 1, 4, 16), torch.ones(2, 1, 2, 9, 16)
    q[0, 0, 3, 5] = float("nan")
    assert ops.attend(q, *cache).view(4, 16).isnan().any(-1).tolist() == [False, False, False, True]
