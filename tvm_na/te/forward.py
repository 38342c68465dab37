"""Neighborhood attention forward, as its definition reads: any rank, every option, no thought of a machine.

This is what the other formulations are checked against.
"""

from __future__ import annotations

from typing import Any

from tvm import te, tirx

from tvm_na.problem import NAProblem
from tvm_na.te.operands import Operands
from tvm_na.te.window import axis_window


def forward(problem: NAProblem) -> Any:
    """The natural expression of ``problem`` as an unscheduled PrimFunc.

    softmax(scale * query key^T + rpb) value over each query's window, the softmax shifted by its maximum;
    arguments as in :mod:`tvm_na.te.operands`.
    """
    ops = Operands.of(problem)
    rank, accum = problem.rank, problem.accum_dtype
    group = problem.heads // problem.heads_kv
    tokens = (ops.batch, *problem.spatial, problem.heads)
    window = problem.kernel_size

    def windows(position: tuple[Any, ...]) -> list[tuple[Any, Any, Any]]:
        return [
            axis_window(i, *axis)
            for i, *axis in zip(
                position,
                problem.spatial,
                window,
                problem.stride,
                problem.dilation,
                problem.is_causal,
                strict=True,
            )
        ]

    def key_position(position: tuple[Any, ...], offset: tuple[Any, ...]) -> list[Any]:
        # A causal window may be shorter than kernel_size; what is behind its end is masked, but read.
        return [
            tirx.min(residue + d * (start + a), size - 1)
            for (residue, start, _), a, d, size in zip(
                windows(position), offset, problem.dilation, problem.spatial, strict=True
            )
        ]

    def exists(position: tuple[Any, ...], offset: tuple[Any, ...]) -> Any:
        return tirx.all(*[start + a < end for (_, start, end), a in zip(windows(position), offset, strict=True)])

    d = te.reduce_axis((0, problem.head_dim), name="d")

    def dot(b: Any, *rest: Any) -> Any:
        position, h, offset = rest[:rank], rest[rank], rest[rank + 1 :]
        product = ops.query[(b, *position, h, d)].astype(accum)
        product *= ops.key[(b, *key_position(position, offset), h // group, d)].astype(accum)
        return te.sum(product, axis=d)

    dots = te.compute((*tokens, *window), dot, name="dots")

    def score(b: Any, *rest: Any) -> Any:
        position, h, offset = rest[:rank], rest[rank], rest[rank + 1 :]
        value = dots[(b, *rest)] * ops.scale[0]
        if ops.rpb is not None:
            # (key - query) / dilation + kernel_size - 1; the clamp acts on masked neighbors alone
            index = [
                tirx.min(tirx.max(start + a - i // dil + k - 1, 0), 2 * k - 2)
                for (_, start, _), a, i, dil, k in zip(
                    windows(position), offset, position, problem.dilation, window, strict=True
                )
            ]
            value = value + ops.rpb[(h, *index)].astype(accum)
        return tirx.Select(exists(position, offset), value, tirx.min_value(accum))

    scores = te.compute((*tokens, *window), score, name="scores")

    def over_window(name: str) -> list[Any]:
        return [te.reduce_axis((0, k), name=f"{name}{axis}") for axis, k in enumerate(window)]

    a = over_window("a")
    maximum = te.compute(tokens, lambda *t: te.max(scores[(*t, *a)], axis=a), name="maximum")
    weights = te.compute(
        (*tokens, *window),
        lambda *t: tirx.Select(
            exists(t[1 : rank + 1], t[rank + 2 :]),
            tirx.exp(scores[t] - maximum[t[: rank + 2]]),
            tirx.const(0, accum),
        ),
        name="weights",
    )
    c = over_window("c")
    total = te.compute(tokens, lambda *t: te.sum(weights[(*t, *c)], axis=c), name="total")
    e = over_window("e")

    def attend(b: Any, *rest: Any) -> Any:
        position, h, x = rest[:rank], rest[rank], rest[rank + 1]
        value = ops.value[(b, *key_position(position, tuple(e)), h // group, x)].astype(accum)
        if any(problem.is_causal):  # a masked value may be inf, and zero times that is not zero
            value = tirx.Select(exists(position, tuple(e)), value, tirx.const(0, accum))
        return te.sum(weights[(b, *position, h, *e)] * value, axis=e)

    attended = te.compute((*tokens, problem.head_dim_v), attend, name="attended")
    out = te.compute(
        (*tokens, problem.head_dim_v),
        lambda *t: (attended[t] / total[t[:-1]]).astype(problem.dtype),
        name="out",
    )
    outputs = [out]
    if problem.return_lse:
        outputs.append(te.compute(tokens, lambda *t: maximum[t] + tirx.log(total[t]), name="lse"))
    return ops.prim_func(problem, outputs, '{"formulation": "natural"}')
