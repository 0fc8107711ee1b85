from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest
import torch
from guarded import guarded
from hypothesis import given, settings
from hypothesis import strategies as st
from isas import NATIVE, needs_native, on_each
from torch import Tensor
from weights import random_weight, reference

from chatglm3.kernels import native, products
from chatglm3.kernels.layout import GroupedWeight, dequantize

Use = Callable[[str], None]
SHAPES = {
    "vectors": st.integers(1, 19),
    "out": st.integers(1, 70),
    "width": st.integers(1, 300),
    "bits": st.sampled_from((4, 8)),
    "group_size": st.sampled_from((32, 64, 128)),
}


def grouped(isa: str, x: Tensor, weight: GroupedWeight, bias: Tensor | None = None) -> Tensor:
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setenv("CHATGLM3_KERNELS", isa)
        native.reset()
        try:
            return products.grouped_linear(x, weight, bias)
        finally:
            patch.undo()
            native.reset()


@needs_native
@given(**SHAPES, spread=st.sampled_from((1e-20, 1.0, 1e20)), seed=st.integers(0, 2**31))
def test_every_instruction_set_computes_the_product(
    vectors: int, out: int, width: int, bits: int, group_size: int, spread: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = random_weight(generator, out, width, bits, group_size)
    x = torch.randn(vectors, width, generator=generator) * spread
    x[0] = 0
    bias = torch.randn(out, generator=generator) if seed % 2 else None
    expected = reference(x, weight, bias)
    sums = x.abs().double() @ dequantize(weight, torch.float64).abs().T  # of what is added, in float32
    for isa in NATIVE:
        error = (grouped(isa, x, weight, bias) - expected).abs()
        assert (error <= 1e-5 * sums + 1e-6 * expected.abs() + 1e-30).all(), isa


@needs_native
@given(**SHAPES, seed=st.integers(0, 2**31))
def test_a_row_does_not_depend_on_the_rows_beside_it(
    vectors: int, out: int, width: int, bits: int, group_size: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = random_weight(generator, out, width, bits, group_size)
    x = torch.randn(vectors, width, generator=generator)
    for isa in NATIVE:
        together = grouped(isa, x, weight)
        assert torch.equal(together, torch.cat([grouped(isa, row[None], weight) for row in x]))


@on_each
@pytest.mark.parametrize("bits", [4, 8])
def test_the_largest_sums_do_not_overflow(isa: str, bits: int, use: Use) -> None:
    width, zero = 13696, 8 if bits == 4 else 128
    generator = torch.Generator().manual_seed(0)
    weight = random_weight(generator, 32, width, bits, 128)
    for code in (0, 2 * zero - 1):
        weight.codes.fill_(code * 17 if bits == 4 else code)
        weight.scales.fill_(127)
        for sign in (1.0, -1.0):
            x = torch.full((5, width), sign)
            torch.testing.assert_close(
                grouped(isa, x, weight).double(), reference(x, weight, None), rtol=1e-4, atol=1e-5
            )


@on_each
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_a_number_stays_so(isa: str, bad: float) -> None:
    weight = random_weight(torch.Generator().manual_seed(0), 20, 70, 4, 32)
    x = torch.zeros(3, 70)
    x[1, 69] = bad
    result = grouped(isa, x, weight)
    assert result[1].isnan().all()
    assert (result[[0, 2]] == 0).all()


@on_each
def test_the_smallest_floats_are_not_divided_by(isa: str) -> None:
    weight = random_weight(torch.Generator().manual_seed(0), 20, 64, 8, 32)
    x = torch.full((1, 64), 1e-45)
    assert grouped(isa, x, weight).abs().max() < 1e-30


@on_each
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("vectors", "out", "width"), [(1, 16, 32), (5, 33, 100), (9, 1, 1)])
def test_nothing_beyond_a_buffer_is_read(isa: str, bits: int, vectors: int, out: int, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = random_weight(generator, out, width, bits, 32)
    x = torch.randn(vectors, width, generator=generator)
    walled = weight._replace(
        codes=guarded(weight.codes), scales=guarded(weight.scales), row_scale=guarded(weight.row_scale)
    )
    assert torch.equal(grouped(isa, guarded(x), walled), grouped(isa, x, weight))


@needs_native
@given(
    vectors=st.integers(1, 11),
    out=st.integers(1, 40),
    width=st.integers(1, 200),
    dtype=st.sampled_from((torch.float16, torch.bfloat16, torch.float32)),
    seed=st.integers(0, 2**31),
)
def test_dense_products(vectors: int, out: int, width: int, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out, width, generator=generator).to(dtype)
    x = torch.randn(vectors, width, generator=generator).to(dtype)
    bias = torch.randn(out, generator=generator).to(dtype) if seed % 2 else None
    expected = torch.nn.functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    for isa in NATIVE:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CHATGLM3_KERNELS", isa)
            native.reset()
            result = native.dense_linear(guarded(x), guarded(weight), bias)
        native.reset()
        assert result.dtype == dtype
        step = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
        sums = x.abs().double() @ weight.abs().double().T  # of what is added, in float32
        assert ((result - expected).abs() <= step * expected.abs() + 2e-6 * sums + 1e-6).all(), isa


@on_each
def test_float16_numbers_of_every_kind(isa: str, use: Use) -> None:
    use(isa)
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(torch.float16)
    result = native.dense_linear(torch.ones(1, 1), every[:, None].contiguous(), None)
    assert torch.equal(result[0].isnan(), every.isnan())
    assert torch.equal(result[0].nan_to_num(0), every.float().nan_to_num(0))


@on_each
def test_threads_share_one_pool(isa: str, use: Use) -> None:
    use(isa)
    weight = random_weight(torch.Generator().manual_seed(0), 640, 512, 4, 32)
    inputs = [torch.randn(n, 512, generator=torch.Generator().manual_seed(n)) for n in (1, 2, 7, 33)]
    alone = [native.grouped_linear(x, weight, None) for x in inputs]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(50):
            if not torch.equal(native.grouped_linear(inputs[index], weight, None), alone[index]):
                wrong.append(index)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        workers = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        torch.set_num_threads(before)
    assert not wrong


@needs_native
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_a_pool_of_its_own() -> None:
    weight = random_weight(torch.Generator().manual_seed(0), 640, 512, 4, 32)
    x = torch.randn(4, 512, generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = native.grouped_linear(x, weight, None)
        child = os.fork()
        if not child:
            os._exit(0 if torch.equal(native.grouped_linear(x, weight, None), expected) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        torch.set_num_threads(before)


@on_each
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, 128])
def test_rows_are_looked_up(isa: str, bits: int, group_size: int, use: Use) -> None:
    use(isa)
    weight = random_weight(torch.Generator().manual_seed(0), 50, 300, bits, group_size)
    ids = torch.tensor([[49, 0, 17], [17, 31, 16]])
    torch.testing.assert_close(products.embed(ids, weight), dequantize(weight, torch.float32)[ids])
    for bad in (-1, 50):
        with pytest.raises(IndexError, match="the weight has 50 rows"):
            products.embed(torch.tensor([3, bad]), weight)


@needs_native
def test_gradients_go_through_torch() -> None:
    weight = random_weight(torch.Generator().manual_seed(0), 20, 40, 4, 32)
    x = torch.randn(3, 40, requires_grad=True)
    products.grouped_linear(x, weight, None).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, dequantize(weight, torch.float32).sum(0).expand(3, -1))


@settings(max_examples=20)
@given(**SHAPES, seed=st.integers(0, 2**31))
def test_without_native_kernels_the_weight_is_multiplied_out(
    vectors: int, out: int, width: int, bits: int, group_size: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = random_weight(generator, out, width, bits, group_size)
    x = torch.randn(vectors, width, generator=generator)
    torch.testing.assert_close(grouped("torch", x, weight), x @ dequantize(weight, torch.float32).T)
