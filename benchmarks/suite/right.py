"""What is right of a problem of any size: the float64 definition, of some queries where all would be too many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tvm_na.problems.attention import NAProblem
from tvm_na.reference.accuracy import relative_error
from tvm_na.reference.attention import softmax_and_lse, window_scores, windows

#: Numbers of keys that are gathered at most.
_MOST = 2**24


@dataclass(frozen=True)
class Right:
    """What is right of the first sample.

    Attributes:
        queries: The numbers of the queries that are compared.
        out: Of those ``[queries, heads, head_dim]``, float64.
        d_out: The gradient of an output that only those queries have, in the inputs' dtype and shape, if wanted.
        gradients: Those of query, key and value then, float64.
    """

    queries: Tensor
    out: Tensor
    d_out: Tensor | None = None
    gradients: tuple[Tensor, ...] = ()

    def error_of_output(self, out: Tensor) -> float:
        """Of an output ``[batch, *spatial, heads, head_dim]``; infinite where any number is not finite."""
        if not bool(out.isfinite().all()):
            return math.inf
        return relative_error(out[0].flatten(0, -3)[self.queries], self.out)

    def error_of_gradients(self, gradients: Sequence[Tensor]) -> float:
        """The largest of those of query, key and value ``[batch, *spatial, heads, head_dim]``."""
        return max(relative_error(a[:1], b) for a, b in zip(gradients, self.gradients, strict=True))


@torch.inference_mode(False)
@torch.enable_grad()
def sampled_right(
    problem: NAProblem, query: Tensor, key: Tensor, value: Tensor, d_out: Tensor | None = None, *, rpb: Tensor | None
) -> Right:
    """Evaluate the definition for the first sample of ``[batch, *spatial, heads, head_dim]``.

    Where keys and values of all windows would be more than 2**24 numbers, some queries are drawn, the first and the
    last among them.
    """
    neighbor, relative, exists = windows(problem, query.device)
    tokens, per_query = neighbor.shape[0], neighbor.shape[1] * problem.heads * problem.head_dim
    count = max(2, min(tokens, _MOST // per_query))
    drawn = torch.randperm(tokens, generator=torch.Generator().manual_seed(0))[:count]
    chosen = torch.cat([torch.tensor([0, tokens - 1]), drawn]).unique().to(query.device)
    leaves = [t[:1].detach().clone().double().requires_grad_() for t in (query, key, value)]
    q, k, v = (t.flatten(1, -3).transpose(1, 2) for t in leaves)
    at = neighbor[chosen]
    bias = None if rpb is None else rpb.detach().clone().double()
    scores = window_scores(q[:, :, chosen], k[:, :, at], bias, problem.head_dim**-0.5, relative[chosen], exists[chosen])
    out = torch.einsum("bhnk,bhnkd->bnhd", softmax_and_lse(scores)[0], v[:, :, at])
    if d_out is None:
        return Right(chosen, out[0].detach())
    sparse = torch.zeros_like(d_out)
    sparse.view(len(sparse), tokens, *d_out.shape[-2:])[:, chosen] = d_out.flatten(1, -3)[:, chosen]
    gradients = torch.autograd.grad(out, leaves, sparse[:1].flatten(1, -3)[:, chosen].double())
    return Right(chosen, out[0].detach(), sparse, gradients)
