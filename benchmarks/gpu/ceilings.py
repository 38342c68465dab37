"""What the machine can do at most: copies, products, reads of its last cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.gpu.cases import time_of
from benchmarks.gpu.folder import RunFolder
from benchmarks.gpu.results import Results
from benchmarks.gpu.steps import Item
from benchmarks.gpu.worker import here

_COPIED, _PRODUCT, _CACHED, _READS = 2**30, 8192, 2**24, 64


def _copy() -> tuple[Callable[[], object], int]:
    source = torch.empty(here().device.scaled(_COPIED), dtype=torch.uint8, device=here().device.name)
    to = torch.empty_like(source)
    return lambda: to.copy_(source), 2 * source.numel()


def _product(dtype: torch.dtype) -> tuple[Callable[[], object], int]:
    n = here().device.scaled(_PRODUCT)
    a, b = torch.randn(2, n, n, device=here().device.name).to(dtype)
    return lambda: a @ b, 2 * n**3


def _cache_read() -> tuple[Callable[[], object], int]:
    cached = torch.ones(here().device.scaled(_CACHED) // 4, device=here().device.name)
    return lambda: cached.expand(_READS, -1).sum(1), _READS * 4 * cached.numel()


#: What is timed, and what it is counted in.
CEILINGS: dict[str, tuple[Callable[[], tuple[Callable[[], object], int]], str]] = {
    "copy": (_copy, "bytes"),
    "product, float16": (lambda: _product(torch.float16), "flops"),
    "product, bfloat16": (lambda: _product(torch.bfloat16), "flops"),
    "L2 read": (_cache_read, "bytes"),
}


def items(folder: RunFolder, results: Results) -> list[Item]:
    """One for each."""
    return [Item(name, (name,)) for name in CEILINGS]


def ceiling(name: str) -> dict[str, Any]:
    """How much of it the device does in a second."""
    make, unit = CEILINGS[name]
    call, amount = make()
    timing = time_of({name: call})[name]
    return {f"{unit}_per_second": amount / timing.median, **timing.to_dict()}
