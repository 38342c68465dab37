"""The functions of NATTEN 0.14 to 0.17 on tensors with heads first, against the reference."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import TOLERANCE
from tests.helpers import assert_says, bad, random_additional, random_inputs, relative_error
from tests.ops.gradients import assert_close
from tvm_na.compat.natten import functional as theirs
from tvm_na.problems.attention import NAProblem
from tvm_na.reference import attention as reference
from tvm_na.reference.attention import axis_neighbors

QKRPB = {1: theirs.natten1dqkrpb, 2: theirs.natten2dqkrpb, 3: theirs.natten3dqkrpb}
DAV = {1: theirs.natten1dav, 2: theirs.natten2dav, 3: theirs.natten3dav}

#: Problems, and the numbers of their windows as natten1dqkrpb, natten2dqkrpb and natten3dqkrpb take them. Groups of
#: a dilation are uneven. 3D has kernel_size_d, kernel_size, dilation_d, dilation, of which no two may be mixed up.
WINDOWS = [
    pytest.param((11,), 3, 2, (3, 2), id="1d"),
    pytest.param((7, 9), 3, 2, (3, 2), id="2d"),
    pytest.param((5, 6, 7), (2, 3, 3), (1, 2, 2), (2, 3, 1, 2), id="3d"),
]


def make(spatial: Any, kernel_size: Any, dilation: Any = 1, dtype: str = "float64", **others: Any) -> NAProblem:
    return NAProblem.make(spatial, kernel_size, 2, 4, dilation=dilation, dtype=dtype, **others)


def first(t: Tensor) -> Tensor:
    """Heads last as heads first, in memory too, which is what client code has."""
    return t.movedim(-2, 1).contiguous()


@pytest.mark.parametrize(("spatial", "kernel_size", "dilation", "numbers"), WINDOWS)
def test_both_halves_are_the_reference_with_gradients(
    spatial: Any, kernel_size: Any, dilation: Any, numbers: tuple[int, ...]
) -> None:
    problem = make(spatial, kernel_size, dilation, bias=True)
    inputs = [t for t in random_inputs(problem, 2, 0) if t is not None]
    wanted_leaves = [t.clone().requires_grad_() for t in inputs]
    wanted, _ = reference.neighborhood_attention(problem, *wanted_leaves[:3], 1.0, wanted_leaves[3])
    leaves = [t.requires_grad_() for t in (*map(first, inputs[:3]), inputs[3].clone())]
    query, key, value, rpb = leaves
    attn = QKRPB[problem.rank](query, key, rpb, *numbers).softmax(dim=-1)
    out = DAV[problem.rank](attn, value, *numbers)
    assert attn.is_contiguous() and out.is_contiguous()  # client code calls view()

    d_out = torch.randn_like(wanted)
    found = torch.autograd.grad(out, leaves, first(d_out))
    right = torch.autograd.grad(wanted, wanted_leaves, d_out)
    assert_close([out, *found], [first(wanted), *map(first, right[:3]), right[3]])


@pytest.mark.parametrize("mixed", [False, True])
def test_both_halves_in_bfloat16_and_under_autocast(mixed: bool) -> None:
    inputs = [torch.randn(2, 2, 7, 9, 8) for _ in range(3)] + [torch.randn(2, 5, 5)]
    query, key, value, rpb = inputs if mixed else [t.bfloat16() for t in inputs]
    exact = [t.bfloat16().double() for t in inputs]
    right = theirs.natten2dqkrpb(exact[0], exact[1], exact[3], 3, 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        scores = theirs.natten2dqkrpb(query, key, rpb, 3, 2)
        weights = scores.softmax(dim=-1)
        out = theirs.natten2dav(weights, value, 3, 2)
    assert scores.dtype == weights.dtype == out.dtype == torch.bfloat16
    assert relative_error(scores, right) <= TOLERANCE["bfloat16"]
    assert relative_error(out, theirs.natten2dav(weights.double(), exact[2], 3, 2)) <= TOLERANCE["bfloat16"]


@pytest.mark.parametrize(("spatial", "kernel_size", "dilation", "numbers"), WINDOWS)
def test_scores_lie_in_the_order_of_the_window(
    spatial: Any, kernel_size: Any, dilation: Any, numbers: tuple[int, ...]
) -> None:
    """Softmax does not see the order of keys, client code that draws maps does."""
    problem = make(spatial, kernel_size, dilation, bias=True)
    query, key, _, rpb = random_inputs(problem, 1, 1)
    assert rpb is not None
    scores = QKRPB[problem.rank](first(query), first(key), rpb, *numbers)[0]
    axes = [axis_neighbors(*axis) for axis in problem.axes]
    for position in itertools.product(*(range(0, n, 2) for n in problem.spatial)):
        windows = itertools.product(*map(range, problem.kernel_size))
        for i, at in enumerate(windows):
            seen = tuple(int(axis[0][p, a]) for axis, p, a in zip(axes, position, at, strict=True))
            steps = zip(seen, position, problem.dilation, problem.kernel_size, strict=True)
            bias = tuple((k - q) // d + size - 1 for k, q, d, size in steps)
            wanted = (query[0][position] * key[0][seen]).sum(-1) + rpb[(slice(None), *bias)]
            assert torch.allclose(scores[(slice(None), *position, i)], wanted, rtol=0, atol=1e-12), (position, at)


def test_functions_that_had_other_names_or_numbers_give_the_same() -> None:
    query, key, value, rpb = random_inputs(make((7, 9), 3, 2, bias=True), 2, 0)
    query, key, value = map(first, (query, key, value))
    scores = theirs.natten2dqkrpb(query, key, rpb, 3, 2)
    plain = theirs.natten2dqk(query, key, 3, 2)
    same = [
        (scores, theirs.natten2dqkrpb(query, key, rpb, 2)),  # 0.14.1 to 0.14.4: the bias says how large a window is
        (scores, theirs.natten2dqkrpb(query, key, rpb=rpb, kernel_size=3, dilation=2)),
        (scores, theirs.na2d_qk_with_bias(query, key, rpb, 3, 2)),
        (scores, theirs.na2d_qk(query, key, kernel_size=(3, 3), dilation=(2, 2), rpb=rpb)),
        (scores, theirs.na2d_qk(query, key, 3, 2, None, False, rpb.float().double())),
        (plain, theirs.na2d_qk(query, key, 3, 2)),
        (plain, theirs.na2d_qk_with_bias(query, key, None, 3, dilation=2)),
        (plain, theirs.natten2dqkrpb(query, key, None, 3, 2)),
        (theirs.natten2dqk(query, key, 3, 1), theirs.na2d_qk(query, key, 3, None, is_causal=None)),
        (theirs.natten2dav(scores, value, 3, 2), theirs.na2d_av(scores, value, 3, dilation=2)),
        (theirs.natten2dav(scores, value, 3, 2), theirs.natten2dav(scores, value, dilation=2)),
    ]
    for i, (a, b) in enumerate(same):
        assert relative_error(a, b) <= (1e-7 if i == 4 else 1e-13), i
    assert relative_error(scores, plain) > 0.1


def test_numbers_for_the_depth_are_those_of_0_15() -> None:
    query, key, value, _ = random_inputs(make((5, 6, 7), (2, 3, 3), (1, 2, 2)), 1, 0)
    query, key, value = map(first, (query, key, value))
    extra = torch.randn(1, 2, 3, 4, dtype=torch.float64)
    scores = theirs.na3d_qk(query, key, (2, 3, 3), (1, 2, 2))
    assert torch.equal(scores, theirs.na3d_qk(query, key, 2, 3, 1, 2))
    assert torch.equal(scores, theirs.na3d_qk(query, key, kernel_size_d=2, kernel_size=3, dilation_d=1, dilation=2))
    assert torch.equal(scores, theirs.na3d_qk_with_bias(query, key, None, 2, 3, 1, 2))
    assert torch.equal(scores, theirs.natten3dqk(query, key, 2, 3, 1, 2))
    out = theirs.na3d_av(scores, value, (2, 3, 3), (1, 2, 2))
    assert torch.equal(out, theirs.na3d_av(scores, value, 2, 3, 1, 2))
    assert torch.equal(
        theirs.na3d_qk(query, key, (2, 3, 3), (1, 2, 2), extra), theirs.na3d_qk(query, key, 2, 3, 1, 2, extra)
    )


def test_additional_keys_and_causal_windows_are_those_of_the_reference() -> None:
    problem = make((7, 9), 3, 2, is_causal=(True, False))
    query, key, value, _ = random_inputs(problem, 2, 0)
    extra = random_additional(problem, 2, 5, 1)
    wanted, _ = reference.neighborhood_attention(problem, query, key, value, 1.0, None, *extra)
    scores = theirs.na2d_qk(first(query), first(key), 3, 2, first(extra[0]), (True, False))
    assert scores.shape == (2, 2, 7, 9, 9 + 5)
    assert (scores[:, :, 0] == -math.inf).any() and not (scores[..., 9:] == -math.inf).any()
    out = theirs.na2d_av(scores.softmax(-1), first(value), 3, 2, first(extra[1]), is_causal=(True, False))
    assert relative_error(out, first(wanted)) <= TOLERANCE["float64"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_bias_and_weights_come_in_the_dtype_of_the_keys_and_values(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    problem = make((7, 9), 3, 2, name, bias=True)
    query, key, value, rpb = random_inputs(problem, 1, 0)
    assert rpb is not None
    scores = theirs.natten2dqkrpb(first(query), first(key), rpb.double(), 3, 2)
    out = theirs.natten2dav(scores.double().softmax(-1), first(value), 3, 2)
    assert scores.dtype == out.dtype == dtype
    doubles = [t.double() for t in (query, key, value, rpb)]
    wanted, _ = reference.neighborhood_attention(make((7, 9), 3, 2, bias=True), *doubles[:3], 1.0, doubles[3])
    assert relative_error(out, first(wanted)) <= 2 * TOLERANCE[name]  # two results that are rounded, one of the other


def call(**changed: Any) -> Tensor:
    query = torch.zeros(1, 2, 7, 9, 4)
    return theirs.na2d_qk(**{"query": query, "key": query, "kernel_size": 3, **changed})


@pytest.mark.parametrize(
    ("argument", "named", "error", "says"),
    [
        bad("query", torch.zeros(1, 7, 9, 8), ValueError, "5 dimensions [batch, heads, *spatial, head_dim]", name="4d"),
        bad("key", [1.0], TypeError, "list"),
        bad("kernel_size", 4, ValueError, "4 * 2 = 8 > 7", dilation=2),
        bad("dilation", 0, ValueError, "got 0"),
        bad("rpb", torch.zeros(2, 3, 3), ValueError, "(2, 5, 5)", "(2, 3, 3)", name="small"),
        bad("additional_keys", torch.zeros(1, 5, 2, 4), ValueError, "(1, 2, 2, 4)", "(1, 5, 2, 4)", name="heads-last"),
    ],
)
def test_bad_arguments(argument: str, named: dict[str, Any], error: type[Exception], says: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        call(**named)
    assert_says(caught, argument, error, says)


def test_numbers_that_no_release_had_are_refused() -> None:
    t = torch.zeros(1, 2, 7, 9, 4)
    for function, arguments, named in (
        (theirs.natten2dqkrpb, (t, t, None, 3), {}),  # without a bias nothing says how large the window is
        (theirs.natten2dqkrpb, (t, t, torch.zeros(2, 5, 5)), {"kernel_size": 3}),
        (theirs.natten2dqkrpb, (t, t, None, 3, 1), {"stride": 1}),
        (theirs.natten2dqk, (t, t, 3), {}),
        (theirs.natten3dqkrpb, (t[..., None], t[..., None], None, 3, 1), {}),
        (theirs.na3d_qk, (t[..., None], t[..., None], 3, 3, 1, 1, None, 7), {}),
    ):
        with pytest.raises(TypeError, match="required"):
            function(*arguments, **named)
