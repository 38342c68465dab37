"""Random inputs of a kernel of gradients, and what is right: by autograd of the reference, in float64."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.reference.case import DISTINCT, Case, draw, draw_inputs

if TYPE_CHECKING:
    from torch import Tensor


def make_backward_case(problem: BackwardProblem, batch: int, device: str, formulation: str = "") -> Case:
    """Random inputs for ``problem``, the same every time, on a device of PyTorch's.

    Their order is that of a kernel's arguments: query, key, value, scale, rpb with a bias, lse, d_out, and d_lse where
    the problem has it. The log-sum-exp is that of these inputs.
    """
    import torch

    distinct = min(batch, DISTINCT)
    generator = torch.Generator().manual_seed(0)
    inputs = draw_inputs(problem.forward, distinct, device, generator)
    read = [a for a in problem.arguments() if a.role == "input"]
    d_results = draw(read[len(inputs) :], distinct, device, generator)  # behind the attention's and lse
    counts = [len(range(sample, batch, distinct)) for sample in range(distinct)]
    lse, gradients = _expected(problem.forward, inputs, d_results, counts)
    samples = torch.arange(batch, device=device) % distinct
    per_sample = [t[samples] for t in (lse.to(inputs[3].dtype), *d_results)]
    return Case(problem, (*(t[samples] for t in inputs[:3]), *inputs[3:], *per_sample), gradients)


def _expected(
    problem: NAProblem, inputs: Sequence[Tensor], d_results: Sequence[Tensor], counts: Sequence[int]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The log-sum-exp, and the gradients of query, key, value and, with a bias, rpb; all float64.

    One sample and head of keys after the other, since the reference gathers every window, and autograd keeps that.

    Args:
        problem: The attention.
        inputs: Query, key, value, scale and, with a bias, rpb.
        d_results: The gradients of output and maybe log-sum-exp.
        counts: How often each sample is in the batch, over which the gradient of rpb adds up.
    """
    import torch

    query, key, value, scale, *rpb = inputs
    group = problem.heads // problem.heads_kv
    one = dataclasses.replace(problem, heads=group, heads_kv=1)
    lse = torch.empty(query.shape[:-1], dtype=torch.float64, device=query.device)
    gradients = [torch.zeros_like(t, dtype=torch.float64) for t in (query, key, value, *rpb)]
    for sample, count in enumerate(counts):
        for head in range(problem.heads_kv):
            queries = (slice(sample, sample + 1), ..., slice(head * group, (head + 1) * group), slice(None))
            keys = (slice(sample, sample + 1), ..., slice(head, head + 1), slice(None))
            tensors = [query[queries], key[keys], value[keys], *(t[queries[2]] for t in rpb)]
            parts = [d_results[0][queries], *(t[queries[:3]] for t in d_results[1:])]
            lse[queries[:3]], found = _of_group(one, tensors, float(scale), parts)
            for gradient, where, part in zip(gradients, (queries, keys, keys), found, strict=False):
                gradient[where] = part
            if rpb:
                gradients[3][queries[2]] += count * found[3]
    return lse, tuple(gradients)


def _of_group(
    problem: NAProblem, tensors: Sequence[Tensor], scale: float, d_results: Sequence[Tensor]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The log-sum-exp and the gradients of ``tensors``, query, key, value and maybe rpb of one head of keys."""
    import torch

    from tvm_na.reference import attention as reference

    with torch.enable_grad():
        query, key, value, *rpb = leaves = [t.detach().double().requires_grad_() for t in tensors]
        results = reference.neighborhood_attention(problem, query, key, value, scale, rpb[0] if rpb else None)
        gradients = torch.autograd.grad(results[: len(d_results)], leaves, [t.double() for t in d_results])
    return results[1].detach(), gradients
