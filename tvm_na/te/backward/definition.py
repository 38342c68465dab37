"""The gradients of neighborhood attention, as their definition reads: any rank, every option, no thought of a machine.

Weights are computed again, as in FlashAttention (arXiv 2205.14135, section B.2), but from each window's own maximum and
sum: a log-sum-exp is rounded as scores are, and where these are large so would be weights. Gradients of keys and values
gather from the queries that see a key (the inverse window), so nothing is added up by atomics. This is what other
formulations are checked against.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import te, tirx

from tvm_na.problems.backward import BackwardProblem
from tvm_na.te.common.math import nonzero
from tvm_na.te.common.neighbors import Neighbors, Queries
from tvm_na.te.common.operands import Operands


def backward(problem: BackwardProblem) -> Any:
    """The natural expression of ``problem`` as an unscheduled PrimFunc; arguments as in ``operands.py``.

    With P = softmax(scale * query key^T + rpb) over each query's window::

        dP = d_out value^T;    dS = P * (dP - delta + d_lse);    delta = sum of P * dP over the window
        d_query = scale * dS key;    d_key = scale * dS^T query;    d_value = P^T d_out
        d_rpb[h, index] = sum of dS over the pairs of a query and a key that have this index
    """
    stages = _Stages(problem)
    weights = stages.weights()
    d_scores = stages.d_scores(weights)
    p, ops = problem.forward, stages.ops
    outputs = [
        stages.d_query(d_scores),
        stages.over_queries("d_key", d_scores, ops.query, p.head_dim, ops.scale[0]),
        stages.over_queries("d_value", weights, ops.d_out, p.head_dim_v),
    ]
    if p.bias:
        outputs.append(stages.d_rpb(d_scores))
    return ops.prim_func(problem, outputs, '{"formulation": "natural"}')


def _axes(name: str, extents: tuple[int, ...]) -> list[Any]:
    return [te.reduce_axis((0, n), name=f"{name}{axis}") for axis, n in enumerate(extents)]


class _Stages:
    """The steps of the formulas. ``tokens`` is ``[batch, *spatial, heads]``, ``pairs`` ``[*tokens, *window]``."""

    def __init__(self, problem: BackwardProblem) -> None:
        self.problem = problem.forward
        self.ops = Operands.of(problem)
        self.near, self.queries = Neighbors(self.problem), Queries(self.problem)
        self.rank, self.accum = self.problem.rank, self.problem.accum_dtype
        self.group = self.problem.heads // self.problem.heads_kv
        self.tokens = (self.ops.batch, *self.problem.spatial, self.problem.heads)
        self.pairs = (*self.tokens, *self.problem.kernel_size)

    def _zero(self) -> Any:
        return tirx.const(0, self.accum)

    def _dots(self, name: str, of_query: Any, of_key: Any, channels: int) -> Any:
        """Products of what each query has with what its neighbors have: pairs.

        Masked ones are of whatever lies there, and must not be used.
        """
        d = te.reduce_axis((0, channels), name="d")

        def dot(b: Any, *rest: Any) -> Any:
            position, h, offset = rest[: self.rank], rest[self.rank], rest[self.rank + 1 :]
            key = (b, *self.near.key_position(position, offset), h // self.group, d)
            return te.sum(of_query[(b, *position, h, d)].astype(self.accum) * of_key[key].astype(self.accum), axis=d)

        return te.compute(self.pairs, dot, name=name)

    def weights(self) -> Any:
        """P, zero where a causal window masks: pairs."""
        ops = self.ops
        dots = self._dots("dots", ops.query, ops.key, self.problem.head_dim)
        lowest = tirx.const(-math.inf, self.accum)

        def score(b: Any, *rest: Any) -> Any:
            position, h, offset = rest[: self.rank], rest[self.rank], rest[self.rank + 1 :]
            value = dots[(b, *rest)] * ops.scale[0]
            if ops.rpb is not None:
                value = value + ops.rpb[(h, *self.near.bias_index(position, offset))].astype(self.accum)
            return self.near.select(position, offset, value, lowest)

        scores, a = te.compute(self.pairs, score, name="scores"), _axes("a", self.problem.kernel_size)
        # From the least finite number on, so that scores of minus infinity alone have weights of zero.
        maximum = te.compute(self.tokens, lambda *t: te.max(scores[(*t, *a)], axis=a), name="maximum")
        powers = te.compute(self.pairs, lambda *t: tirx.exp(scores[t] - maximum[t[: self.rank + 2]]), name="powers")
        i = _axes("i", self.problem.kernel_size)
        total = te.compute(self.tokens, lambda *t: te.sum(powers[(*t, *i)], axis=i), name="total")

        def weight(*t: Any) -> Any:
            token, offset = t[: self.rank + 2], t[self.rank + 2 :]
            value = powers[t] / nonzero(total[token], self.accum)
            return self.near.select(token[1:-1], offset, value, self._zero())

        return te.compute(self.pairs, weight, name="weights")

    def d_scores(self, weights: Any) -> Any:
        """dS, zero where a causal window masks: pairs."""
        d_weights = self._dots("d_weights", self.ops.d_out, self.ops.value, self.problem.head_dim_v)
        a = _axes("a", self.problem.kernel_size)

        def weighted(*t: Any) -> Any:
            # A masked value may be inf, and zero times that is not zero.
            value = weights[(*t, *a)] * d_weights[(*t, *a)]
            return te.sum(self.near.select(t[1:-1], tuple(a), value, self._zero()), axis=a)

        delta = te.compute(self.tokens, weighted, name="delta")

        def d_score(*t: Any) -> Any:
            token, offset = t[: self.rank + 2], t[self.rank + 2 :]
            value = d_weights[t] - delta[token]
            if self.ops.d_lse is not None:
                value = value + self.ops.d_lse[token]
            return self.near.select(token[1:-1], offset, weights[t] * value, self._zero())

        return te.compute(self.pairs, d_score, name="d_scores")

    def d_query(self, d_scores: Any) -> Any:
        """``[*tokens, head_dim]``."""
        ops, shape = self.ops, (*self.tokens, self.problem.head_dim)
        e = _axes("e", self.problem.kernel_size)

        def gather(b: Any, *rest: Any) -> Any:
            position, h, x = rest[: self.rank], rest[self.rank], rest[self.rank + 1]
            key = ops.key[(b, *self.near.key_position(position, tuple(e)), h // self.group, x)].astype(self.accum)
            value = d_scores[(b, *position, h, *e)] * key
            return te.sum(self.near.select(position, tuple(e), value, self._zero()), axis=e)

        found = te.compute(shape, gather, name="query_sum")
        return te.compute(shape, lambda *t: (found[t] * ops.scale[0]).astype(self.problem.dtype), name="d_query")

    def over_queries(self, name: str, factors: Any, of_query: Any, channels: int, scale: Any = None) -> Any:
        """Sums, over the queries that see a key, of their factor for it (pairs) times what they have:
        ``[batch, *spatial, heads_kv, channels]``, times ``scale``."""
        shape = (*self.tokens[:-1], self.problem.heads_kv, channels)
        g, n = te.reduce_axis((0, self.group), name="g"), _axes("n", self.queries.most)

        def gather(b: Any, *rest: Any) -> Any:
            key, h, x = rest[: self.rank], rest[self.rank] * self.group + g, rest[self.rank + 1]
            query = (b, *self.queries.query_position(key, tuple(n)), h)
            value = factors[(*query, *self.queries.key_offset(key, tuple(n)))] * of_query[(*query, x)].astype(
                self.accum
            )
            # Beyond the last query the last one is read again.
            return te.sum(tirx.Select(self.queries.exists(key, tuple(n)), value, self._zero()), axis=[g, *n])

        found = te.compute(shape, gather, name=name.removeprefix("d_") + "_sum")
        return te.compute(
            shape,
            lambda *t: (found[t] if scale is None else found[t] * scale).astype(self.problem.dtype),
            name=name,
        )

    def d_rpb(self, d_scores: Any) -> Any:
        """``[heads, 2*kernel_size-1, ...]``: a query has at most one neighbor with an index."""
        shape = self.problem.bias_shape
        b, i = te.reduce_axis((0, self.tokens[0]), name="b"), _axes("i", self.problem.spatial)

        def gather(h: Any, *index: Any) -> Any:
            offset, exists = self.near.offset_of(tuple(i), index)
            return te.sum(tirx.Select(exists, d_scores[(b, *i, h, *offset)], self._zero()), axis=[b, *i])

        found = te.compute(shape, gather, name="rpb_sum")

        def entry(*t: Any) -> Any:
            # A sum over an empty batch is not even set to zero.
            return tirx.Select(self.tokens[0] > 0, found[t], self._zero()).astype(self.problem.dtype)

        return te.compute(shape, entry, name="d_rpb")
