"""Layer norm on a CPU: right for any number of rows and channels, for any target."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.conftest import TOLERANCE
from tests.helpers import relative_error
from tvm_na.schedules.cpu import norm as cpu_norm
from tvm_na.targets.target import detect_target, parse_target
from tvm_na.te import ENTRY
from tvm_na.te.dense.norm import layer_norm


def scheduled(rows: int, channels: int, dtype: str, eps: float = 1e-5, target: Any = None) -> Any:
    target = target or detect_target()
    lanes = cpu_norm.lanes_for(channels, dtype, target)
    return cpu_norm.schedule(layer_norm(rows, channels, lanes, eps, dtype, target.converts_float16))


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize(("batch", "rows", "channels"), [(1, 49, 64), (3, 5, 33), (2, 1, 1), (5, 7, 24)])
def test_numbers(dtype: str, batch: int, rows: int, channels: int) -> None:
    import tvm

    function = tvm.compile(scheduled(rows, channels, dtype), target=detect_target().tvm_target())[ENTRY]
    torch.manual_seed(0)
    x = torch.randn(batch, rows, channels, dtype=getattr(torch, dtype)) * 3 + 20  # far from zero: cancellation
    weight, bias = torch.randn(2, channels, dtype=x.dtype).unbind()
    out = torch.full_like(x, torch.nan)
    function(*(t.contiguous() if t.data_ptr() % 64 == 0 else t.clone() for t in (x, weight, bias)), out)
    right = F.layer_norm(x.double(), (channels,), weight.double(), bias.double())
    if channels == 1:
        right = bias.double().expand_as(x)  # a single channel is its own mean
    # The input is 20 / 3 standard deviations from zero, and so is the error of its mean.
    assert relative_error(out, right) <= 10 * TOLERANCE[dtype]


def test_eps_is_what_was_given() -> None:
    import tvm

    function = tvm.compile(scheduled(2, 8, "float32", eps=4.0), target=detect_target().tvm_target())[ENTRY]
    x, weight, bias, out = torch.randn(1, 2, 8), torch.ones(8), torch.zeros(8), torch.empty(1, 2, 8)
    function(x, weight, bias, out)
    assert relative_error(out, F.layer_norm(x, (8,), eps=4.0)) <= TOLERANCE["float32"]


@pytest.mark.parametrize(
    ("name", "register"), [("llvm-x86-sse4", "xmm"), ("llvm-x86-avx512", "zmm"), ("llvm-aarch64-neon", ".4s")]
)
def test_vectors_are_those_of_the_target(name: str, register: str) -> None:
    import tvm

    target = parse_target(name)
    executable = tvm.compile(scheduled(9, 64, "float32", target=target), target=target.tvm_target())
    assert register in executable.mod.inspect_source("s")
