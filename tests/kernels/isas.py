"""Which instruction sets this machine can test."""

from __future__ import annotations

import pytest

from chatglm3.kernels import native

NATIVE = [name for name in native.supported() if name != native.TORCH]
needs_native = pytest.mark.skipif(not NATIVE, reason="the package was installed without its native kernels")
on_each = pytest.mark.parametrize("isa", NATIVE)
