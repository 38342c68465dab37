"""Random problems with values at the edge: outputs, log-sum-exps and gradients are those of the float64 oracle."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from tests.conftest import GRADIENT_TOLERANCE, TOLERANCE
from tests.fuzz.subject import Subject
from tests.helpers import random_inputs, random_problem
from tests.ops.gradients import NAMES, attend, random_gradients
from tvm_na.problems.attention import NAProblem
from tvm_na.reference import attention as reference

_SCALE = 0.6
_SIZES = {1: (1, 60), 2: (1, 14), 3: (1, 7)}
#: Gradients add up more numbers.
_GRADIENTS = {"float16": 4e-3, "bfloat16": 3e-2, **GRADIENT_TOLERANCE}


def _spoil(rng: random.Random, tensor: Tensor, biases: bool) -> None:
    """Put values at the edge into a tensor, or leave it as it is."""
    flat = tensor.view(-1)
    some = torch.tensor([rng.randrange(len(flat)) for _ in range(rng.choice([1, 1, 2, 5]))])
    kind = rng.choice(["plain", "plain", "large", "small", "zero", "one", "masked" if biases else "plain"])
    if kind == "large":
        tensor.mul_(rng.choice([10.0, 100.0, 1000.0]))
    elif kind == "small":
        tensor.mul_(torch.finfo(tensor.dtype).tiny)
    elif kind == "zero":
        tensor.zero_()
    elif kind == "one":
        flat[some] = rng.choice([float("nan"), float("inf"), float("-inf")])
    elif kind == "masked":
        tensor[torch.rand(tensor.shape) < rng.choice([0.3, 0.9, 1.0])] = float("-inf")


def _tolerance(problem: NAProblem, tensors: list[Tensor], table: dict[str, float]) -> float:
    """The budget of a dtype, more where scores are large: each has an error of its own size times the dtype's."""
    finite = [t.double()[t.isfinite()].abs().max().item() if t.isfinite().any() else 0.0 for t in tensors]
    scores = _SCALE * problem.head_dim * finite[0] * finite[1] + (finite[3] if problem.bias else 0.0)
    steps = torch.finfo(getattr(torch, problem.accum_dtype)).eps
    return table[problem.dtype] + 8 * steps * scores


def _compare(name: str, found: Tensor, right: Tensor, tolerance: float, least: float = 0.0) -> None:
    """The error is at most ``tolerance`` times the largest number that is right, which counts as ``least`` or more."""
    held = torch.finfo(torch.float16).max if found.dtype is torch.float16 else 1e37
    found, right = found.double(), right.double()
    sure = right.isfinite() & (right.abs() < held)
    wrong = sure & ~found.isfinite()
    assert not wrong.any(), f"{name}: not finite at {wrong.nonzero()[0].tolist()} of {tuple(found.shape)}"
    for kind, test in (("NaN", torch.isnan), ("infinite", torch.isinf)):
        missing = test(right) & found.isfinite()
        assert not missing.any(), f"{name}: required {kind} at {missing.nonzero()[0].tolist()}, got a finite number"
    if sure.any() and tolerance < 0.1:
        largest = max(least, right[sure].abs().max().item())
        error = (found - right)[sure].abs().max().item()
        assert error <= tolerance * largest + torch.finfo(torch.float32).tiny, f"{name}: {error} of {largest}"


class Numbers(Subject):
    """See the module."""

    name = "numbers"

    def round(self, rng: random.Random) -> None:
        """One problem, forward and backward."""
        rank = rng.choice([1, 2, 2, 3])
        dtype = rng.choice(["float32", "float32", "float64", "float16", "bfloat16"])
        problem = random_problem(rng, rank=rank, sizes=_SIZES[rank], dtype=dtype, return_lse=True)
        batch = rng.randint(1, 2)
        tensors = [t for t in random_inputs(problem, batch, rng.getrandbits(32)) if t is not None]
        for number in rng.sample(range(len(tensors)), rng.randint(0, 2)):
            _spoil(rng, tensors[number], biases=number == 3)
        wanted, leaves = [t.double().requires_grad_() for t in tensors], [t.requires_grad_() for t in tensors]
        query, key, value, *rpb = wanted
        right = reference.neighborhood_attention(problem, query, key, value, _SCALE, *rpb)
        results = attend(problem, *leaves)
        tolerance = _tolerance(problem, tensors, TOLERANCE)
        # A logarithm is as exact as its argument, which is 1 or more, is by itself.
        for name, found, value, least in zip(("out", "lse"), results, right, (0.0, 1.0), strict=True):
            _compare(f"{name} of {problem}", found.detach(), value.detach(), tolerance, least)
        d_results = [d for d in random_gradients(problem, batch, rng.getrandbits(32)) if d is not None]
        gradients = torch.autograd.grad(results, leaves, d_results)
        expected = torch.autograd.grad(right, wanted, [d.double() for d in d_results])
        tolerance = _tolerance(problem, tensors, _GRADIENTS)
        for name, found, value in zip(NAMES, gradients, expected, strict=False):
            _compare(f"{name} of {problem}", found, value, tolerance)
