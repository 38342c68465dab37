"""The memory that a forward and backward pass take at their peak.

``python -m benchmarks.memory PROBLEM STEP``, of which the step is build or measure, prints the bytes of the tensors and
of the peak.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from functools import partial

from benchmarks.fresh import last_line_of, peak_of_call
from tvm_na.problems.attention import NAProblem


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


def _measured(problem: NAProblem, build: bool) -> tuple[int, int]:
    """Bytes of the tensors and of the peak, in this process (``build``: only that its kernels are there)."""
    k, d = problem.kernel_size[0], problem.dilation[0]
    # Everything that is loaded on first use is loaded by a smaller problem.
    _pass(NAProblem.make((k * d + 1, k * d + 1), k, 1, 8, dilation=d, bias=problem.bias))
    return (_pass(problem), 0) if build else peak_of_call(partial(_pass, problem))


def peak_of(problem: NAProblem) -> Peak:
    """The peak of a two-dimensional problem in float32, each of whose axes has one window.

    Raises:
        RuntimeError: the process failed; the message has what it said.
    """
    # Kernels are built by a process of their own.
    found = [last_line_of("benchmarks.memory", problem.to_json(), step) for step in ("build", "measure")]
    return Peak(problem, *json.loads(found[-1]))


if __name__ == "__main__":
    print(json.dumps(_measured(NAProblem.from_json(sys.argv[1]), sys.argv[2] == "build")))
