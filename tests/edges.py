"""Values at the edge: what every kernel must make of them, and how far a NaN or an infinity may reach.

A *runner* takes tensors by name (query, key, value, rpb, d_out, d_lse) and a scale, and gives results by name (out,
lse, and gradients).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tests import brute
from tests.conftest import GRADIENT_TOLERANCE, TOLERANCE
from tests.helpers import random_inputs
from tests.ops.gradients import NAMES, random_gradients
from tvm_na.problems.attention import TF32, NAProblem
from tvm_na.reference import attention as reference

Tensors = dict[str, Tensor]
Run = Callable[[Tensors, float], Tensors]

INPUTS = ("query", "key", "value", "rpb", "d_out", "d_lse")
DTYPES = ("float32", "float64", "float16", "bfloat16")
#: Two maps whose windows differ: at borders, in groups, cut off by causality. Channels are those of tensor cores.
SIZES = {
    "plain": ((6, 7), 3, 4, 16, {"heads_kv": 2}),
    "causal, dilated": ((7, 9), 3, 2, 16, {"dilation": (1, 2), "is_causal": (False, True)}),
}


def problem_of(name: str, dtype: str) -> NAProblem:
    """With every input and result."""
    *sizes, options = SIZES[name]
    return NAProblem.make(*sizes, bias=True, return_lse=True, dtype=dtype, **options)


def tensors_of(problem: NAProblem) -> Tensors:
    """Random inputs and gradients of results, by name."""
    return dict(zip(INPUTS, (*random_inputs(problem, 1, 0), *random_gradients(problem, 1, 0)), strict=True))


def right(problem: NAProblem, tensors: Tensors, scale: float) -> Tensors:
    """Every result by the reference and its autograd in float64."""
    leaves = [tensors[name].detach().double().requires_grad_() for name in INPUTS[:4]]
    out, lse = reference.neighborhood_attention(problem, *leaves[:3], scale, leaves[3])
    found = torch.autograd.grad([out, lse], leaves, [tensors[name].double() for name in ("d_out", "d_lse")])
    return {"out": out.detach(), "lse": lse.detach(), **dict(zip(NAMES, found, strict=True))}


# --- finite answers


def _largest(t: Tensor) -> float:
    """A number that sums of a window's values, and scores in powers of two, leave finite."""
    info = torch.finfo(t.dtype)
    return info.max if t.dtype == torch.float16 else info.max / 16


def _signs(t: Tensor) -> Tensor:
    return torch.where(t < 0, -1.0, 1.0).to(t.dtype)


def _no_scores(t: Tensors) -> None:
    t["rpb"][0] = -math.inf


def _no_scores_in_a_corner(t: Tensors) -> None:
    t["rpb"][1, 2:, 2:] = -math.inf  # all that the first query sees, which is cut off by causality or the border


def _some_scores(t: Tensors) -> None:
    t["rpb"][0, 2, 2] = t["rpb"][1, 0] = t["rpb"][1, 4, 1] = -math.inf


def _large_values(t: Tensors) -> None:
    t["value"] = _signs(t["value"]) * _largest(t["value"])
    t["d_out"] = t["d_out"] * 2.0**-20 if t["d_out"].dtype == torch.float16 else t["d_out"] / _largest(t["d_out"])


def _large_biases(t: Tensors) -> None:
    t["rpb"] = _signs(t["rpb"]) * _largest(t["rpb"])


def _large_negative_biases(t: Tensors) -> None:
    t["rpb"] = torch.full_like(t["rpb"], -_largest(t["rpb"]))


def _scores(t: Tensors, exponent: int) -> None:
    """Queries and keys whose products are about 2^exponent, as far as the dtype has such numbers."""
    for name in ("query", "key"):
        largest = torch.finfo(t[name].dtype).max
        t[name] = (t[name].double() * 2.0 ** (exponent // 2)).clamp(-largest, largest).to(t[name].dtype)


def _bits(t: Tensors) -> int:
    return 1022 if t["query"].dtype == torch.float64 else 126


def _denormal(t: Tensors) -> None:
    for name in ("value", "d_out"):
        t[name] = t[name] * (torch.finfo(t[name].dtype).tiny / 8)


@dataclass(frozen=True)
class Edge:
    """Inputs with finite answers, but for log-sum-exps of minus infinity.

    Attributes:
        change: Changes random tensors.
        scale: The factor of the scores, given these tensors.
    """

    change: Callable[[Tensors], None]
    scale: Callable[[Tensors], float] = lambda _: 0.5


EDGES = {
    "no scores": Edge(_no_scores),
    "no scores in a corner": Edge(_no_scores_in_a_corner),
    "some scores": Edge(_some_scores),
    "large values": Edge(_large_values),
    "large biases": Edge(_large_biases),
    "large negative biases": Edge(_large_negative_biases),
    "large scale": Edge(lambda t: _scores(t, -_bits(t)), lambda t: 2.0 ** _bits(t)),
    "small scale": Edge(lambda t: _scores(t, _bits(t) - 4), lambda t: 2.0 ** -_bits(t)),
    "denormal": Edge(_denormal),
}


def assert_edge(problem: NAProblem, edge: str, run: Run, lse_dtype: str = "") -> None:
    """The results are those of the reference in float64, and finite or infinite where those are.

    The log-sum-exp is as near as one of weights in ``lse_dtype``, which is that of sums unless it is given.
    """
    tensors = tensors_of(problem)
    EDGES[edge].change(tensors)
    scale = EDGES[edge].scale(tensors)
    wanted = right(problem, tensors, scale)
    assert wanted["lse"].isneginf().any() == edge.startswith("no scores")
    for name, found in run({name: t.clone() for name, t in tensors.items()}, scale).items():
        expected = wanted[name].to(found.dtype)
        assert torch.equal(found.isneginf(), expected.isneginf()) and not found.isposinf().any(), name
        assert torch.equal(found.isnan(), expected.isnan()), name
        there = expected.isfinite()
        assert name == "lse" or there.all(), name
        difference = (found.double() - wanted[name])[there].abs().max().item()
        budget = GRADIENT_TOLERANCE if name.startswith("d_") and problem.dtype in GRADIENT_TOLERANCE else TOLERANCE
        # Numbers below the normal ones are multiples of the least, and have no more digits.
        info = torch.finfo(found.dtype)
        least = info.smallest_normal * (2.0**-10 if problem.dtype == TF32 else info.eps)
        kind = (lse_dtype or problem.accum_dtype) if name == "lse" else problem.dtype
        assert difference <= budget[kind] * wanted[name][there].abs().max().item() + 16 * least, name


# --- how far one bad number reaches

#: The results that an input acts on.
REACHED = {
    **dict.fromkeys(("query", "key", "rpb"), ("out", "lse", *NAMES)),
    "value": ("out", "d_query", "d_key", "d_rpb"),
    "d_out": NAMES,
    "d_lse": ("d_query", "d_key", "d_rpb"),
}
#: Where the bad number is: its index, but for the sample.
PLACES = ("first", "middle", "last")


def _place(t: Tensor, name: str, place: str) -> tuple[int, ...]:
    """The index of an element."""
    shape = t.shape if name == "rpb" else t.shape[1:]
    index = tuple({"first": 0, "middle": n // 2, "last": n - 1}[place] for n in shape)
    return index if name == "rpb" else (0, *index)


def reach(problem: NAProblem, name: str, index: tuple[int, ...]) -> Tensors:
    """Masks of the results that the element of an input may act on: those of the windows that hold it."""
    mask, entry = brute.dense(problem)
    tokens, group, rank = len(mask), problem.heads // problem.heads_kv, problem.rank
    windows = torch.zeros(problem.heads, tokens, dtype=torch.bool)
    if name == "rpb":
        number = torch.arange(math.prod(problem.bias_shape[1:])).view(problem.bias_shape[1:])[index[1:]]
        windows[index[0]] = (mask & (entry == number)).any(1)
    else:
        token = torch.arange(tokens).view(problem.spatial)[index[1 : rank + 1]]
        head = index[rank + 1]
        if name in ("key", "value"):
            windows[head * group : (head + 1) * group] = mask[:, token]
        else:
            windows[head, token] = True
    pairs = windows[:, :, None] & mask
    queries, keys = windows.T, pairs.any(1).unflatten(0, (problem.heads_kv, group)).any(1).T
    entries = torch.zeros(problem.heads, math.prod(problem.bias_shape[1:]), dtype=torch.bool)
    for head, *pair in pairs.nonzero().tolist():
        entries[head, entry[tuple(pair)]] = True
    shapes = {"d_key": keys, "d_value": keys}
    found = {n: shapes.get(n, queries).reshape(1, *problem.spatial, -1, 1) for n in ("out", *NAMES[:3])}
    found |= {"lse": queries.reshape(1, *problem.spatial, -1), "d_rpb": entries.view(problem.bias_shape)}
    return {n: t & (n in REACHED[name]) for n, t in found.items()}


def assert_reach(problem: NAProblem, name: str, poison: float, run: Run, in_bands: bool = False) -> None:
    """One bad number acts where the reference in float64 says, on nothing but windows that hold it, and is not lost.

    With ``in_bands`` keys and values may act on other queries of their heads too.
    """
    tensors = tensors_of(problem)
    clean = run({n: t.clone() for n, t in tensors.items()}, 0.5)
    assert all(t.isfinite().all() for t in clean.values())
    for place in PLACES:
        index = _place(tensors[name], name, place)
        bad = {n: t.clone() for n, t in tensors.items()}
        bad[name][index] = poison
        masks, wanted = reach(problem, name, index), right(problem, bad, 0.5)
        for result, found in run(bad, 0.5).items():
            may = masks[result]
            if in_bands and name in ("key", "value"):
                may = may.any(dim=tuple(range(1, problem.rank + 1)), keepdim=True)
            may = may.expand_as(found)
            label = f"{name} at {index}: {result}"
            assert wanted[result][~may].isfinite().all(), f"{label}: the reference reaches further"
            assert torch.equal(found[~may], clean[result][~may]), f"{label} is reached outside of its windows"
            assert not (found.isfinite() & ~wanted[result].isfinite()).any(), f"{label} hides it"
