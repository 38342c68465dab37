"""na1d_qk to na3d_av: what they compute, their derivatives, bad input, the choice of the backend."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.brute import dense
from tests.conftest import TOLERANCE
from tests.helpers import assert_says, random_inputs, relative_error
from tests.ops.gradients import assert_close
from tvm_na import functional, na1d_av, na1d_qk, na2d, na2d_av, na2d_qk, na3d_av, na3d_qk
from tvm_na.problems.attention import NAProblem

QK, AV = (na1d_qk, na2d_qk, na3d_qk), (na1d_av, na2d_av, na3d_av)
# Each with something else that is odd: uneven groups, even kernels, strides, causality, heads that share keys.
PROBLEMS = {
    "1d": NAProblem.make(11, 3, 4, 5, heads_kv=2, head_dim_v=5, dilation=2, bias=True),
    "2d": NAProblem.make((9, 10), (3, 4), 2, 8, stride=(1, 2), dilation=(2, 1), is_causal=(False, True), bias=True),
    "2d causal": NAProblem.make((7, 11), (2, 3), 4, 12, heads_kv=2, dilation=(1, 3), is_causal=True, stride=(2, 1)),
    "3d": NAProblem.make((4, 5, 6), (2, 3, 1), 2, 6, is_causal=(True, False, False), dilation=(2, 1, 1), bias=True),
    "k 1": NAProblem.make((3, 4), 1, 1, 3),
}


def steps(problem: NAProblem, tensors: Any, backend: str = "compiled") -> tuple[Tensor, Tensor]:
    """Scores and the output of query, key, value and maybe a bias, scaled by 0.6."""
    query, key, value, *rpb = tensors
    bias = rpb[0] if rpb else None
    scores = QK[problem.rank - 1](query, key, *problem.window, 0.6, rpb=bias, backend=backend)
    return scores, AV[problem.rank - 1](scores.softmax(dim=-1), value, *problem.window, backend=backend)


def inputs(problem: NAProblem, dtype: str = "float64", batch: int = 2) -> list[Tensor]:
    drawn = random_inputs(problem, batch, 0, getattr(torch, dtype))
    return [t.requires_grad_() for t in drawn if t is not None]


# --- what they compute


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_the_reference_is_the_definition(problem: NAProblem) -> None:
    """Scores as the dense product under a mask has them, in the order of the keys."""
    query, key, value, rpb = random_inputs(problem, 1, 0, torch.float64)
    scores, out = steps(problem, [t for t in (query, key, value, rpb) if t is not None], "reference")
    mask, index = dense(problem)
    group = problem.heads // problem.heads_kv
    flat_query, flat_key, flat_value = (t[0].flatten(0, -3) for t in (query, key, value))
    for head in range(problem.heads):
        whole = flat_query[:, head] @ flat_key[:, head // group].T * 0.6
        if rpb is not None:
            whole = whole + rpb[head].flatten()[index]
        found, right = scores[0].flatten(0, -3)[:, head], out[0].flatten(0, -3)[:, head]
        for n in range(len(mask)):
            there = found[n] > -math.inf
            assert there.sum() == mask[n].sum()
            assert relative_error(found[n][there], whole[n][mask[n]]) <= TOLERANCE["float64"]
            summed = whole[n][mask[n]].softmax(0) @ flat_value[mask[n], head // group]
            assert relative_error(right[n], summed) <= TOLERANCE["float64"]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_compiled_steps_and_gradients_are_those_of_the_reference(problem: NAProblem, dtype: str) -> None:
    tensors = inputs(problem, dtype)
    doubles = [t.detach().double().requires_grad_() for t in tensors]
    found, right = steps(problem, tensors), steps(problem, doubles, "reference")
    there = right[0] > -math.inf
    assert torch.equal(found[0] > -math.inf, there)
    assert not found[0].isnan().any()
    assert relative_error(found[0][there], right[0][there]) <= TOLERANCE[dtype]
    assert relative_error(found[1], right[1]) <= TOLERANCE[dtype]
    weights = torch.randn_like(right[1])
    gradients = torch.autograd.grad(found[1], tensors, weights.to(found[1].dtype))
    assert_close(gradients, torch.autograd.grad(right[1], doubles, weights), dtype)


@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_both_steps_are_the_fused_operator(backend: str) -> None:
    problem = PROBLEMS["2d"]
    (query, key, value, rpb), window = inputs(problem), problem.window
    out = na2d_av(na2d_qk(query, key, *window, None, rpb=rpb, backend=backend).softmax(-1), value, *window)
    assert relative_error(out, na2d(query, key, value, *window, rpb=rpb, backend=backend)) <= TOLERANCE["float64"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sums_of_halves_are_float32(dtype: str) -> None:
    problem = PROBLEMS["2d"]
    tensors = inputs(problem, dtype)
    found, right = steps(problem, tensors), steps(problem, [t.detach().double() for t in tensors], "reference")
    assert found[0].dtype == found[1].dtype == getattr(torch, dtype)
    there = right[0] > -math.inf
    assert relative_error(found[0][there], right[0][there]) <= TOLERANCE[dtype]
    # Weights were rounded too, so each step is compared by itself.
    weights = found[0].detach().softmax(dim=-1)
    out = na2d_av(weights, tensors[2], *problem.window, backend="compiled")
    alone = na2d_av(weights.double(), tensors[2].double(), *problem.window, backend="reference")
    assert relative_error(out, alone) <= TOLERANCE[dtype]
    (found[1].float().square().sum()).backward()
    assert all(t.grad is not None and t.grad.dtype == t.dtype and t.grad.isfinite().all() for t in tensors)


def test_autocast_takes_tensors_in_its_dtype() -> None:
    query, key, value, rpb = inputs(PROBLEMS["2d"], "float32")
    window = (PROBLEMS["2d"].kernel_size, (1, 2), (2, 1), (False, True))
    for name in ("compiled", "reference"):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            scores = na2d_qk(query, key, *window, rpb=rpb, backend=name)
            out = na2d_av(scores.softmax(-1), value, *window, backend=name)
            kept = na2d_qk(query.double(), key.double(), *window, backend=name)
        assert (scores.dtype, out.dtype, kept.dtype) == (torch.bfloat16, torch.bfloat16, torch.float64)


# --- derivatives


def problem_for_gradcheck() -> tuple[NAProblem, list[Tensor]]:
    problem = NAProblem.make((2, 4), (2, 3), 2, 1, heads_kv=1, stride=(1, 2), is_causal=(True, False), bias=True)
    return problem, inputs(problem, batch=1)


def test_gradcheck_and_gradgradcheck() -> None:
    problem, tensors = problem_for_gradcheck()

    def both(*leaves: Tensor) -> tuple[Tensor, Tensor]:
        scores, out = steps(problem, leaves)
        return torch.where(scores > -math.inf, scores, 0.0), out

    assert torch.autograd.gradcheck(both, tensors)
    assert torch.autograd.gradgradcheck(both, tensors, fast_mode=True)


def test_gradients_of_merged_attentions() -> None:
    problem = NAProblem.make((3, 4), 3, 1, 1)
    tensors = inputs(problem, batch=1)

    def merged(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        parts = [na2d(query, key, value, k, return_lse=True, backend="compiled") for k in (3, 1)]
        return functional.merge_attentions([p[0] for p in parts], [p[1] for p in parts])

    assert torch.autograd.gradcheck(merged, tensors)
    assert torch.autograd.gradgradcheck(merged, tensors, fast_mode=True)


@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_weights_without_a_key_count_nothing(backend: str) -> None:
    problem = PROBLEMS["2d causal"]
    query, key, value = inputs(problem)
    scores = na2d_qk(query, key, *problem.window, backend=backend)
    missing = scores == -math.inf
    assert missing.any()
    attn = scores.detach().softmax(dim=-1)
    right = na2d_av(attn, value, *problem.window, backend=backend)
    for junk in (math.nan, math.inf, 7.0):
        spoilt = attn.masked_fill(missing, junk).requires_grad_()
        out = na2d_av(spoilt, value, *problem.window, backend=backend)
        assert torch.equal(out, right)
        d_attn, d_value = torch.autograd.grad(out.square().sum(), (spoilt, value))
        assert (d_attn[missing] == 0).all()
        assert d_attn.isfinite().all()
        assert d_value.isfinite().all()
        # Nor do gradients of scores without a key, not even NaN.
        found = torch.autograd.grad(scores, (query, key), spoilt.detach(), retain_graph=True)
        assert all(g.isfinite().all() for g in found)


def test_an_infinite_key_or_value_stays_in_its_windows() -> None:
    query, key, value = (torch.randn(1, 6, 9, 1, 8) for _ in range(3))
    key[0, 0, 0], value[0, 0, 0] = math.inf, math.nan
    scores = na2d_qk(query, key, 3, is_causal=True, backend="compiled")
    out = na2d_av(torch.ones_like(scores), value, 3, is_causal=True, backend="compiled")
    reached = torch.zeros(6, 9, dtype=torch.bool)
    reached[:3, :3] = True
    assert torch.equal(out[0, :, :, 0].isnan().any(-1), reached)
    assert (scores[0, 3:].isfinite() | (scores[0, 3:] == -math.inf)).all()


# --- bad input


def t(*shape: int, **options: Any) -> Tensor:
    return torch.zeros(shape or (2, 6, 7, 2, 8), **options)


# What replaces good arguments, the error, the argument that its message names, and what it says.
BAD_QK = [
    ({"query": t(2, 6, 7, 8)}, ValueError, "query", "5 dimensions"),
    ({"query": t(dtype=torch.int32)}, TypeError, "query", "int32"),
    ({"key": t(2, 6, 8, 2, 8)}, ValueError, "key", "(2, 6, 8, 2, 8)"),
    ({"key": t(dtype=torch.float64)}, TypeError, "key", "torch.float64"),
    ({"key": t(2, 6, 7, 3, 8)}, ValueError, "heads", "heads_kv=3"),
    ({"kernel_size": True}, TypeError, "kernel_size", "bool"),
    ({"kernel_size": 7}, ValueError, "kernel_size", "7 * 1 = 7 > 6"),
    ({"stride": 4}, ValueError, "stride", "4 > 3"),
    ({"dilation": [1]}, ValueError, "dilation", "2 values"),
    ({"is_causal": 1}, TypeError, "is_causal", "int 1"),
    ({"scale": math.nan}, ValueError, "scale", "nan"),
    ({"scale": 1e39}, ValueError, "scale", "below 2^127"),
    ({"rpb": t(2, 5, 4)}, ValueError, "rpb", "(2, 5, 5)"),
    ({"backend": "cuda"}, ValueError, "backend", "'cuda'"),
]
BAD_AV = [
    ({"attn": [[1.0]]}, TypeError, "attn", "list"),
    ({"attn": t(2, 6, 7, 2, 8)}, ValueError, "attn", "(2, 6, 7, 2, 9)"),
    ({"attn": t(2, 6, 7, 9)}, ValueError, "attn", "5 dimensions"),
    ({"attn": t(2, 6, 7, 2, 9, dtype=torch.int64)}, TypeError, "attn", "int64"),
    ({"attn": t(2, 6, 7, 0, 9)}, ValueError, "attn", "(2, 6, 7, 0, 9)"),
    ({"value": t(2, 6, 8, 2, 8)}, ValueError, "value", "(2, 6, 8, 2, 8)"),
    ({"value": t(2, 6, 7, 2, 0)}, ValueError, "value", ">= 1"),
    ({"value": t(dtype=torch.float16)}, TypeError, "value", "float16"),
    ({"value": t(device="meta")}, ValueError, "value", "meta"),
    ({"value": t(2, 6, 7, 3, 8)}, ValueError, "heads", "heads_kv=3"),
    ({"kernel_size": (3, 3, 3)}, ValueError, "kernel_size", "2 values"),
    ({"kernel_size": (3, 5)}, ValueError, "attn", "(2, 6, 7, 2, 15)"),
    ({"dilation": 0}, ValueError, "dilation", ">= 1"),
]
GOOD_QK = {"query": t(), "key": t(), "kernel_size": 3}
GOOD_AV = {"attn": t(2, 6, 7, 2, 9), "value": t(), "kernel_size": 3}
BAD = [(na2d_qk, GOOD_QK, *bad) for bad in BAD_QK] + [(na2d_av, GOOD_AV, *bad) for bad in BAD_AV]


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("call", "good", "change", "error", "argument", "says"), BAD)
def test_bad_input_is_named(
    call: Any, good: Any, change: Any, error: Any, argument: str, says: str, backend: str
) -> None:
    call(**good, backend=backend)
    with pytest.raises(error) as caught:
        call(**{**good, "backend": backend, **change})
    assert_says(caught, argument, error, [says])


def test_lists_and_what_equals_a_good_call_are_checked_too() -> None:
    query = torch.randn(1, 6, 7, 1, 4)
    known = na2d_qk(query, query, (1, 1), backend="compiled")
    assert torch.equal(na2d_qk(query, query, [1, 1], backend="compiled"), known)
    with pytest.raises(TypeError, match="kernel_size: required an integer, got bool"):
        na2d_qk(query, query, (True, 1))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused() -> None:
    nested = torch.nested.nested_tensor([t(6, 7, 2, 8)] * 2)
    for call, argument in ((na2d_qk, "query"), (na2d_av, "attn")):
        with pytest.raises(TypeError) as caught:
            call(nested, nested, 3)
        assert_says(caught, argument, TypeError, ["got a nested tensor"])
