"""The memory that a forward and backward pass take at their peak, measured in a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tvm_na.problem import NAProblem

_ROOT = Path(__file__).parent.parent
# Everything that is loaded on first use is loaded by a smaller problem, whose kernels, like those of the problem, have
# been built before by another process; malloc takes large tensors from the system one by one, and gives them back.
_CODE = """
import json, sys, torch
from benchmarks.memory import measured
print(json.dumps(measured(sys.argv[1], sys.argv[2] == "build")))
"""


@dataclass(frozen=True)
class Peak:
    """What one pass takes.

    Attributes:
        problem: The attention.
        tensors: Bytes of query, key, value and output and of the gradients of all four.
        peak: Bytes at most in use at a time, beyond what was there before, those tensors included.
    """

    problem: NAProblem
    tensors: int
    peak: int

    @property
    def ratio(self) -> float:
        """Peak memory over that of the tensors."""
        return self.peak / self.tensors


def _status(name: str) -> int:
    """A number of bytes that Linux keeps of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _pass(problem: NAProblem) -> int:
    """Run it forward and backward with a batch of one; the bytes of its tensors."""
    import torch

    from tvm_na import na2d

    tokens = (1, *problem.spatial)
    query, key, value = (torch.randn(*tokens, problem.heads, problem.head_dim).requires_grad_() for _ in range(3))
    rpb = torch.randn(problem.bias_shape).requires_grad_() if problem.bias else None
    out = na2d(query, key, value, problem.kernel_size, dilation=problem.dilation, rpb=rpb, backend="compiled")
    out.backward(torch.ones_like(out))
    return 8 * query.numel() * query.element_size()


def measured(problem_json: str, build: bool) -> tuple[int, int]:
    """Bytes of the tensors and of the peak, in this process (``build``: only that its kernels are there)."""
    problem = NAProblem.from_json(problem_json)
    k, d = problem.kernel_size[0], problem.dilation[0]
    _pass(NAProblem.make((k * d + 1, k * d + 1), k, 1, 8, dilation=d, bias=problem.bias))
    if build:
        return _pass(problem), 0
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts from now
    tensors = _pass(problem)
    return tensors, _status("VmHWM") - before


def peak_of(problem: NAProblem) -> Peak:
    """The peak of a two-dimensional problem in float32, each of whose axes has one window.

    Raises:
        RuntimeError: the process failed; the message has what it said.
    """
    import json

    found = []
    for step in ("build", "measure"):
        done = subprocess.run(
            [sys.executable, "-c", _CODE, problem.to_json(), step],
            cwd=_ROOT,
            env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"measuring the memory of {problem} failed: {done.stderr}")
        found = json.loads(done.stdout.splitlines()[-1])
    return Peak(problem, *found)
