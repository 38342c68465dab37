"""Random problems and inputs, the reference in float64, the measure of their difference, and bad arguments."""

from __future__ import annotations

import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tvm_na import settings
from tvm_na.jit import build
from tvm_na.ops import calls, launch, register, residual
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.base import Problem
from tvm_na.problems.checks import per_axis_ints
from tvm_na.reference import attention as reference

#: How many random problems a test of one room draws; 500 take minutes. The default is what `make test` has time for.
PROBLEMS = int(os.environ.get("TVM_NA_TEST_PROBLEMS", "12"))

ROOT = Path(__file__).parents[1]
HEAD_DIMS = (4, 12, 24, 32, 40, 64, 128)
MAX_KERNEL = 9
MAX_DILATION = 4
#: Numbers in the largest tensor that the reference makes of a drawn problem for a batch of one.
MAX_GATHERED = 2**24

Inputs = tuple[Tensor, Tensor, Tensor, Tensor | None]


class Function(nn.Module):
    """Computes ``function(module, x)`` with some parts of its own, modules or parameters."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def share(part: int) -> int:
    """:data:`PROBLEMS` over ``part``, rounded up: for tests whose problems cost more, or come in blocks of ``part``."""
    return -(-PROBLEMS // part)


def relative_error(out: Tensor, ref: Tensor) -> float:
    """``max|out - ref| / max|ref|``; NaN if there is one in ``out``, an AssertionError for unlike shapes."""
    assert out.shape == ref.shape, f"shapes differ: {tuple(out.shape)} and {tuple(ref.shape)}"
    difference = (out.double() - ref.double()).abs().max().item()
    largest = ref.double().abs().max().item()
    return difference / largest if largest else difference


def _draw_axis(
    rng: random.Random, sizes: tuple[int, int], size: int | None, k: int | None, s: int | None, d: int | None
) -> tuple[int, int, int, int]:
    """Size, kernel, stride and dilation of one axis around those that are given."""
    largest = sizes[1] if size is None else size
    if k is None:
        k = rng.randint(s or 1, max(s or 1, min(MAX_KERNEL, largest // (d or 1))))
    if d is None:
        d = rng.choice([1, rng.randint(1, max(1, min(MAX_DILATION, largest // k)))])
    if size is None:
        size = rng.randint(max(sizes[0], k * d), max(largest, k * d))
    return size, k, rng.choice([1, rng.randint(1, k)]) if s is None else s, d


def random_problem(rng: random.Random, *, rank: int = 2, sizes: tuple[int, int] = (5, 40), **fixed: Any) -> NAProblem:
    """A problem drawn from all options of the operator, but those ``fixed``; of ``rank`` where ``spatial`` is none."""
    if "spatial" in fixed:
        rank = 1 if isinstance(fixed["spatial"], int) else len(fixed["spatial"])

    def given(name: str) -> tuple[int | None, ...]:
        return per_axis_ints(name, fixed[name], rank) if name in fixed else (None,) * rank

    for _ in range(1000):
        axes = [
            _draw_axis(rng, sizes, *axis)
            for axis in zip(*map(given, ("spatial", "kernel_size", "stride", "dilation")), strict=True)
        ]
        spatial, kernel_size, stride, dilation = zip(*axes, strict=True)
        heads, heads_kv = fixed.get("heads"), fixed.get("heads_kv")
        if heads is None:
            heads_kv = rng.randint(1, 3) if heads_kv is None else heads_kv
            heads = heads_kv * rng.choice([1, 1, 2, 3])
        elif heads_kv is None:
            heads_kv = rng.choice([n for n in range(1, heads + 1) if heads % n == 0])
        head_dim = fixed.get("head_dim") or rng.choice(HEAD_DIMS)
        drawn = {
            "spatial": spatial,
            "kernel_size": kernel_size,
            "stride": stride,
            "dilation": dilation,
            "is_causal": tuple(rng.random() < 0.3 for _ in range(rank)),
            "heads": heads,
            "heads_kv": heads_kv,
            "head_dim": head_dim,
            "head_dim_v": rng.choice([head_dim, rng.choice(HEAD_DIMS)]),
            "bias": rng.random() < 0.5,
            "return_lse": rng.random() < 0.5,
        }
        problem = NAProblem.make(**{**drawn, **fixed})
        windows = math.prod(problem.spatial) * math.prod(problem.kernel_size)
        if windows * problem.heads * max(problem.head_dim, problem.head_dim_v) <= MAX_GATHERED:
            return problem
    raise ValueError(f"no problem with {fixed} is as small as {MAX_GATHERED} numbers")


def random_inputs(problem: NAProblem, batch: int, seed: int, dtype: torch.dtype | None = None) -> Inputs:
    """Query, key, value and bias (None without one), normally distributed, in ``dtype`` or the problem's own."""
    generator = torch.Generator().manual_seed(seed)
    kind = getattr(torch, problem.tensor_dtype) if dtype is None else dtype

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(kind)

    tokens = (batch, *problem.spatial)
    query = draw(*tokens, problem.heads, problem.head_dim)
    key = draw(*tokens, problem.heads_kv, problem.head_dim)
    value = draw(*tokens, problem.heads_kv, problem.head_dim_v)
    return query, key, value, draw(*problem.bias_shape) if problem.bias else None


def random_additional(problem: NAProblem, batch: int, extra: int, seed: int) -> tuple[Tensor, Tensor]:
    """Additional keys and values in the problem's dtype."""
    generator = torch.Generator().manual_seed(seed)
    kind = getattr(torch, problem.dtype)
    shape = (batch, extra, problem.heads_kv)
    keys = torch.randn(*shape, problem.head_dim, generator=generator, dtype=torch.float64).to(kind)
    return keys, torch.randn(*shape, problem.head_dim_v, generator=generator, dtype=torch.float64).to(kind)


def reference64(problem: NAProblem, inputs: Inputs, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp by the reference in float64, of inputs in any dtype."""
    query, key, value = (t.double() for t in inputs[:3])
    rpb = None if inputs[3] is None else inputs[3].double()
    factor = problem.head_dim**-0.5 if scale is None else scale
    return reference.neighborhood_attention(problem, query, key, value, factor, rpb)


def build_all(problems: Iterable[Problem]) -> None:
    """Put the kernels of these problems on disk, compiled on all cores."""
    target = build.target_for("cpu")
    with ThreadPoolExecutor(settings.available_cores()) as pool:
        list(pool.map(lambda problem: build.compile_for(problem, target), dict.fromkeys(problems)))


def run_python(code: str, *arguments: str, **options: Any) -> str:
    """What a fresh Python prints that runs ``code``, by default at the root of the repository; it must end well."""
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    options = {"cwd": ROOT, "timeout": 120, **options}
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


_FORKING = """
import contextlib, io, os, sys, traceback
exec(sys.argv[1])
forked_children = []
for _ in range(int(sys.argv[3])):
    forked_children.append(os.fork())
    if forked_children[-1] == 0:
        try:
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(sys.argv[2])
            os.write(1, printed.getvalue().encode())  # at once, so that lines stay whole
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if sys.argv[4] == "one by one":
        assert os.waitpid(forked_children.pop(), 0)[1] == 0
for child in forked_children:
    assert os.waitpid(child, 0)[1] == 0
"""


def run_forked(before: str, code: str, count: int, at_once: bool, **options: Any) -> list[str]:
    """The lines that ``count`` processes print that run ``code``, at once or one after the other.

    They are forked from a fresh Python that ran ``before``, so what that imports is imported once.
    """
    texts = (textwrap.dedent(before), textwrap.dedent(code))
    return run_python(_FORKING, *texts, str(count), "at once" if at_once else "one by one", **options).splitlines()


def bad(argument: str, value: Any, error: type[Exception], *says: str, name: str = "", **others: Any) -> Any:
    """A call whose ``argument`` must be refused with a message that holds ``says``."""
    label = name or str(value).replace(" ", "")
    return pytest.param(argument, {argument: value, **others}, error, says, id=f"{argument}-{label}")


def assert_says(caught: pytest.ExceptionInfo[Exception], argument: str, error: type[Exception], says: Any) -> None:
    """The one error that ``argument`` deserves: its message names it and holds every part of ``says``."""
    message = str(caught.value)
    assert caught.type is error, repr(caught.value)
    assert message.startswith(f"{argument}: required "), message
    for part in says:
        assert part in message, message


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 10.0) -> None:
    """Return when ``condition()`` is true, and fail if it is not in time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not in {seconds} s: {what}"
        time.sleep(0.005)


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """A context that raises a TimeoutError if it is not left in time, also out of a system call that waits."""

    def end(*_: object) -> None:
        raise TimeoutError(f"not done in {seconds} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def forget_calls() -> None:
    """Check every kind of call again, and make its launchers anew, when it next comes."""
    for module in (calls, launch, register, residual):
        module.forget()
