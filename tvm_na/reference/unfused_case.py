"""Random inputs of a kernel of the unfused operators, and what is right: by the reference, in float64."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tvm_na.problems.unfused import UnfusedProblem
from tvm_na.reference.case import DISTINCT, Case, draw

if TYPE_CHECKING:
    from torch import Tensor

_SCALE = 0.6


def make_unfused_case(problem: UnfusedProblem, batch: int, device: str, formulation: str = "") -> Case:
    """Random inputs for ``problem``, the same every time, on a device of PyTorch's.

    Their order is that of a kernel's arguments: query, key, scale and maybe rpb; attn, value and scale; attn, query and
    scale; attn alone for sums of a bias, whole or in parts.
    """
    import torch

    distinct = min(batch, DISTINCT)
    generator = torch.Generator().manual_seed(0)
    tensors = draw((a for a in problem.arguments() if a.role == "input"), distinct, "cpu", generator)
    samples = torch.arange(batch) % distinct
    # Sums of a bias add up over the batch.
    expected = _expected(problem, [t[samples] for t in tensors] if problem.kind == "bias_sums" else tensors)
    scale = torch.tensor([_SCALE], dtype=getattr(torch, problem.accum_dtype))
    inputs = [t[samples] for t in tensors[:2]]
    inputs += [] if problem.kind in ("bias_sums", "bias_parts") else [scale]
    inputs += tensors[2:]
    return Case(problem, tuple(t.to(device) for t in inputs), (expected.to(device),))


def _expected(problem: UnfusedProblem, tensors: list[Tensor]) -> Tensor:
    """The output in float64; sums over queries and for a bias as derivatives of what the reference defines."""
    import torch

    from tvm_na.reference import unfused as unfused_reference

    p, (first, *others) = problem.forward, [t.double() for t in tensors]
    if problem.kind in ("qk", "dots"):
        scores = unfused_reference.qk(p, first, others[0], _SCALE, *others[1:])
        return scores if problem.kind == "qk" else scores.masked_fill(scores == -torch.inf, 0.0)
    if problem.kind == "av":
        return unfused_reference.av(p, first, others[0]) * _SCALE
    if problem.kind == "bias_parts":
        return _bias_parts(problem, first)
    with torch.enable_grad():
        if problem.kind == "bias_sums":
            leaf = torch.zeros(p.bias_shape, dtype=torch.float64, requires_grad=True)
            out, gradient = unfused_reference.bias_gather(p, leaf).expand(first.shape), first
        else:
            shape = (*first.shape[:-2], p.heads_kv, problem.channels)
            leaf = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
            out, gradient = unfused_reference.av(p, first, leaf) * _SCALE, others[0]
        (found,) = torch.autograd.grad(out, leaf, gradient)
    return found


def _bias_parts(problem: UnfusedProblem, attn: Tensor) -> Tensor:
    """``[batch, parts, *bias_shape]``: the weights of each part of a sample, added up by their index of the bias."""
    import torch

    from tvm_na.reference import attention as reference

    p, (rows, columns) = problem.forward, problem.part
    _, relative, exists = reference.windows(p, attn.device)
    token = torch.arange(len(exists))
    row, column = token // p.spatial[-1], token % p.spatial[-1]
    part = row // rows * -(-p.spatial[-1] // columns) + column // columns
    entries = math.prod(p.bias_shape[1:])
    index = (part[:, None] * entries + relative.masked_fill(~exists, 0)).flatten()
    weights = attn.flatten(1, -3).transpose(1, 2).masked_fill(~exists, 0.0).flatten(2)
    found = attn.new_zeros(*weights.shape[:2], problem.parts * entries).index_add_(2, index, weights)
    return found.unflatten(2, (problem.parts, entries)).transpose(1, 2).reshape(-1, problem.parts, *p.bias_shape)
