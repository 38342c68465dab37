"""A problem, its leaves, and the gradients that are right for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.conftest import GRADIENT_TOLERANCE, TOLERANCE
from tests.helpers import Inputs, random_inputs, relative_error
from tvm_na import functional
from tvm_na.problems.attention import NAProblem
from tvm_na.reference import attention as reference

PROBLEM = NAProblem.make((4, 5), 3, 2, 4, bias=True, dtype="float64")
#: PROBLEM's window and scale as the operators take them.
NUMBERS: tuple[Any, ...] = ([3, 3], [1, 1], [1, 1], [False, False], 0.6)
NAMES = ("d_query", "d_key", "d_value", "d_rpb")
BUDGET = {**TOLERANCE, **GRADIENT_TOLERANCE}


def leaves(problem: NAProblem = PROBLEM, batch: int = 2, seed: int = 0) -> list[Tensor]:
    """Query, key, value and, where there is one, the bias, each with requires_grad."""
    return [t.requires_grad_() for t in random_inputs(problem, batch, seed) if t is not None]


def _apart(tensors: Any) -> tuple[Any, ...]:
    """Bias, additional keys and values, each None where it is not among what follows query, key and value."""
    rpb = tensors[3] if len(tensors) in (4, 6) else None
    return (rpb, *(tensors[-2:] if len(tensors) > 4 else (None, None)))


def attend(problem: NAProblem, *tensors: Tensor, lse: bool = True, backend: str = "compiled") -> Any:
    """The operator, scaled by 0.6, on query, key, value, maybe the bias, maybe additional keys and values."""
    front = (functional.na1d, functional.na2d, functional.na3d)[problem.rank - 1]
    rpb, *additional = _apart(tensors)
    return front(*tensors[:3], *problem.window, 0.6, *additional, rpb=rpb, return_lse=lse, backend=backend)


def wanted(
    problem: NAProblem,
    tensors: Any,
    d_out: Tensor | None,
    d_lse: Tensor | None,
    scale: float = 0.6,
    dtype: torch.dtype = torch.float64,
) -> list[Tensor]:
    """The gradients of the same tensors by autograd of the reference in float64, or another dtype."""
    copies = [t.detach().to(dtype, copy=True).requires_grad_() for t in tensors]
    results = reference.neighborhood_attention(problem, *copies[:3], scale, *_apart(copies))
    used = [(r, d.to(dtype)) for r, d in zip(results, (d_out, d_lse), strict=True) if d is not None]
    found = torch.autograd.grad([r for r, _ in used], copies, [d for _, d in used], allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for t, g in zip(copies, found, strict=True)]


def random_gradients(problem: NAProblem, batch: int, seed: int = 0) -> tuple[Tensor, Tensor | None]:
    """d_out, and d_lse or None."""
    generator = torch.Generator().manual_seed(seed + 1)
    tokens = (batch, *problem.spatial, problem.heads)
    d_out = torch.randn(*tokens, problem.head_dim_v, generator=generator, dtype=torch.float64)
    d_lse = torch.randn(*tokens, generator=generator, dtype=torch.float64)
    d_out = d_out.to(getattr(torch, problem.tensor_dtype))
    return d_out, d_lse.to(getattr(torch, problem.accum_dtype)) if problem.return_lse else None


def wanted_by_name(problem: NAProblem, inputs: Any, gradients: Any, scale: float) -> dict[str, Tensor]:
    """:func:`wanted` by name, of inputs of which a bias may be None."""
    found = wanted(problem, [t for t in inputs if t is not None], *gradients, scale)
    return dict(zip(NAMES, found, strict=False))


def assert_close(found: Any, right: Any, dtype: str = "float64", note: str = "") -> None:
    """Each of ``found`` is as near to its counterpart as gradients of a dtype are."""
    for a, b in zip(found, right, strict=True):
        assert a.shape == b.shape, note
        assert not a.numel() or relative_error(a, b) <= BUDGET[dtype], note


def same_as_reference(run: Callable[..., Any], *tensors: Tensor) -> None:
    """``run(backend, *tensors)`` gives, in float64, the same tensors whoever computes."""
    assert_close(run("compiled", *tensors), run("reference", *tensors))


#: Sizes of scores at which gradients are as exact as those of PyTorch.
SIZES = (1.0, 37.0, 380.0, 3400.0, 1e4, 1e5)


def large_inputs(problem: NAProblem, size: float, seed: int = 0) -> Inputs:
    """Query, key, value and bias whose scores, scaled by 1 / sqrt(head_dim), are ``size`` and differ by about 1."""
    query, key, value, rpb = random_inputs(problem, 1, seed, torch.float64)
    common = torch.ones(problem.head_dim, dtype=torch.float64) / problem.head_dim**0.5
    query, key = (t - (t @ common)[..., None] * common for t in (query, key))
    found = query + size * common, key + problem.head_dim**0.5 * common, value
    dtype = getattr(torch, problem.dtype)
    return found[0].to(dtype), found[1].to(dtype), found[2].to(dtype), None if rpb is None else rpb.to(dtype)


def assert_as_exact_as_pytorch(problem: NAProblem, run: Callable[[Inputs, Any, float], dict[str, Tensor]]) -> None:
    """Float32 gradients of large scores are within three times the error, its mean square, of PyTorch's own autograd.

    ``run(inputs, gradients, scale)`` gives the gradients by name.
    """
    scale, (d_out, d_lse) = problem.head_dim**-0.5, random_gradients(problem, 1)
    for size in SIZES:
        inputs = large_inputs(problem, size)
        tensors = [t for t in inputs if t is not None]
        right = wanted(problem, tensors, d_out, d_lse, scale)
        own = wanted(problem, tensors, d_out, d_lse, scale, torch.float32)
        found = run(inputs, (d_out, d_lse), scale)
        for name, a, b, c in zip(found, found.values(), own, right, strict=True):
            error, allowed = (a - c).square().mean().sqrt(), 3 * (b - c).square().mean().sqrt()
            assert error <= allowed, (size, name, error / c.abs().max(), allowed / c.abs().max())


def assert_right_where_one_key_counts(
    problem: NAProblem, run: Callable[[Inputs, Any, float], dict[str, Tensor]]
) -> None:
    """The same for scores so large that one weight of each window is 1, and gradients of scores are 0."""
    (query, *others), d_results = random_inputs(problem, 1, 0), random_gradients(problem, 1)
    for size in (1e9, 1e30):
        inputs = (query * size, *others)
        right = wanted(problem, [t for t in inputs if t is not None], *d_results, 0.3)
        found = run(inputs, d_results, 0.3)
        for name, a, b in zip(found, found.values(), right, strict=True):
            assert (a - b).abs().max() <= BUDGET[problem.dtype] * max(b.abs().max(), 1), (size, name)
