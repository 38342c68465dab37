"""Neighborhood attention forward, as its definition reads: any rank, every option, no thought of a machine.

This is what the other formulations are checked against.
"""

from __future__ import annotations

import math
from typing import Any

from tvm import te, tirx

from tvm_na.problems.attention import NAProblem
from tvm_na.te.common.math import nonzero
from tvm_na.te.common.neighbors import Neighbors
from tvm_na.te.common.operands import Operands


def forward(problem: NAProblem) -> Any:
    """The natural expression of ``problem`` as an unscheduled PrimFunc.

    softmax(scale * query key^T + rpb) value over each query's window, the softmax shifted by its maximum; where all
    scores are minus infinity the output is 0 and the log-sum-exp minus infinity. Arguments as in
    :mod:`tvm_na.te.common.operands`.
    """
    ops, near = Operands.of(problem), Neighbors(problem)
    rank, accum = problem.rank, problem.accum_dtype
    group = problem.heads // problem.heads_kv
    tokens = (ops.batch, *problem.spatial, problem.heads)
    window = problem.kernel_size

    d = te.reduce_axis((0, problem.head_dim), name="d")

    def dot(b: Any, *rest: Any) -> Any:
        position, h, offset = rest[:rank], rest[rank], rest[rank + 1 :]
        product = ops.query[(b, *position, h, d)].astype(accum)
        product *= ops.key[(b, *near.key_position(position, offset), h // group, d)].astype(accum)
        return te.sum(product, axis=d)

    dots = te.compute((*tokens, *window), dot, name="dots")

    def score(b: Any, *rest: Any) -> Any:
        position, h, offset = rest[:rank], rest[rank], rest[rank + 1 :]
        value = dots[(b, *rest)] * ops.scale[0]
        if ops.rpb is not None:
            value = value + ops.rpb[(h, *near.bias_index(position, offset))].astype(accum)
        return near.select(position, offset, value, tirx.const(-math.inf, accum))

    scores = te.compute((*tokens, *window), score, name="scores")

    def over_window(name: str) -> list[Any]:
        return [te.reduce_axis((0, k), name=f"{name}{axis}") for axis, k in enumerate(window)]

    # No less than the least finite number, so that scores of minus infinity alone have weights of 0.
    a = over_window("a")
    maximum = te.compute(tokens, lambda *t: te.max(scores[(*t, *a)], axis=a), name="maximum")

    def weight(*t: Any) -> Any:
        value = tirx.exp(scores[t] - maximum[t[: rank + 2]])
        return near.select(t[1 : rank + 1], t[rank + 2 :], value, tirx.const(0, accum))

    weights = te.compute((*tokens, *window), weight, name="weights")
    c = over_window("c")
    total = te.compute(tokens, lambda *t: te.sum(weights[(*t, *c)], axis=c), name="total")
    e = over_window("e")

    def attend(b: Any, *rest: Any) -> Any:
        position, h, x = rest[:rank], rest[rank], rest[rank + 1]
        value = ops.value[(b, *near.key_position(position, tuple(e)), h // group, x)].astype(accum)
        # A masked value may be inf, and zero times that is not zero.
        value = near.select(position, tuple(e), value, tirx.const(0, accum))
        return te.sum(weights[(b, *position, h, *e)] * value, axis=e)

    attended = te.compute((*tokens, problem.head_dim_v), attend, name="attended")
    out = te.compute(
        (*tokens, problem.head_dim_v),
        lambda *t: (attended[t] / nonzero(total[t[:-1]], accum)).astype(problem.dtype),
        name="out",
    )
    outputs = [out]
    if problem.return_lse:
        outputs.append(te.compute(tokens, lambda *t: maximum[t] + tirx.log(total[t]), name="lse"))
    return ops.prim_func(problem, outputs, '{"formulation": "natural"}')
