"""The tensor expression of the gradients, compiled as it stands, against autograd of the reference in float64."""

from __future__ import annotations

import functools
import math
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import brute
from tests.conftest import TOLERANCE
from tests.helpers import Inputs, random_inputs, random_problem, reference64, relative_error
from tests.te.test_attention import PROBLEMS
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem

NAMES = ("d_query", "d_key", "d_value", "d_rpb")
#: d_out, and d_lse or None.
Gradients = tuple[Tensor, Tensor | None]


@functools.cache
def kernel_of(problem: NAProblem) -> Any:
    """Not optimised: what is computed is the same, and a kernel takes half a second instead of two."""
    import tvm

    from tvm_na.te.backward.definition import backward

    target = tvm.target.Target({"kind": "llvm", "opt-level": 0})
    return tvm.compile(tvm.IRModule({"main": backward(BackwardProblem(problem))}), target=target)["main"]


def random_gradients(problem: NAProblem, batch: int) -> Gradients:
    tokens = (batch, *problem.spatial, problem.heads)
    d_out = torch.randn(*tokens, problem.head_dim_v, dtype=torch.float64).to(getattr(torch, problem.dtype))
    d_lse = torch.randn(tokens, dtype=torch.float64).to(getattr(torch, problem.accum_dtype))
    return d_out, d_lse if problem.return_lse else None


def run(problem: NAProblem, inputs: Inputs, gradients: Gradients, scale: float) -> dict[str, Tensor]:
    """The gradients by name, written over NaN; the arguments stay as they are. The lse is the reference's."""
    query, key, value, rpb = inputs
    accum = getattr(torch, problem.accum_dtype)
    lse = reference64(problem, inputs, scale)[1].to(accum).contiguous()
    found = [torch.full_like(t, math.nan) for t in inputs if t is not None]
    arguments = [query, key, value, torch.tensor([scale], dtype=accum), rpb, lse, *gradients]
    before = [None if t is None else t.clone() for t in arguments]
    kernel_of(problem)(*(t for t in arguments if t is not None), *found)
    for was, now in zip(before, arguments, strict=True):
        torch.testing.assert_close(now, was, rtol=0, atol=0, equal_nan=True)
    return dict(zip(NAMES, found, strict=False))


def autograd64(problem: NAProblem, inputs: Inputs, gradients: Gradients, scale: float) -> dict[str, Tensor]:
    """The gradients by name, by autograd of the reference in float64."""
    leaves = [t.double().requires_grad_() for t in inputs if t is not None]
    results = reference64(problem, (*leaves[:3], leaves[3] if problem.bias else None), scale)
    given = [t.double() for t in gradients if t is not None]
    return dict(zip(NAMES, torch.autograd.grad(results[: len(given)], leaves, given), strict=False))


def assert_right(problem: NAProblem, batch: int, scale: float) -> None:
    inputs, gradients = random_inputs(problem, batch, seed=batch), random_gradients(problem, batch)
    found = run(problem, inputs, gradients, scale)
    wanted = autograd64(problem, inputs, gradients, scale)
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        assert relative_error(gradient, wanted[name]) <= TOLERANCE[problem.dtype], name


@pytest.mark.parametrize("name", PROBLEMS)
def test_one_kernel_serves_every_batch(name: str) -> None:
    for batch in (1, 3):
        assert_right(PROBLEMS[name], batch, 0.6)


@pytest.mark.parametrize("seed", range(15))
def test_random_problems(seed: int) -> None:
    rng = random.Random(seed)
    dtype = rng.choice(["float32", "float64", "float64", "float16", "bfloat16"])
    rank = 1 + seed % 3
    sizes = {1: (3, 17), 2: (3, 8), 3: (2, 5)}[rank]
    head_dim_v = rng.choice([4, 3, 5])
    assert_right(random_problem(rng, rank=rank, sizes=sizes, head_dim=4, head_dim_v=head_dim_v, dtype=dtype), 2, 0.5)


@pytest.mark.parametrize("scale", [0.0, -1.5, 10.0])
def test_any_scale(scale: float) -> None:
    """Zero, negative, and so large that a window is all but one key."""
    assert_right(PROBLEMS["2d-even"], 1, scale)
    assert_right(PROBLEMS["2d-half-causal"], 1, scale)


def test_corner_keys_on_their_own() -> None:
    """Keys at a border are seen by fewer queries than a window has keys; at scale 0 all weights are the same."""
    problem = PROBLEMS["2d-lse"]
    inputs, (d_out, d_lse) = random_inputs(problem, batch=1, seed=0), random_gradients(problem, 1)
    found = run(problem, inputs, (d_out, d_lse), 0.0)
    rows, columns = {0: (0, 2), 1: (0, 3), 2: (0, 5), 4: (3, 5)}, {0: (0, 2), 1: (0, 3), 2: (0, 4), 5: (4, 6)}
    for y, (top, bottom) in rows.items():
        for x, (left, right) in columns.items():
            wanted = d_out[:, top:bottom, left:right].sum(dim=(1, 2)) / 9
            assert relative_error(found["d_value"][:, y, x], wanted) <= TOLERANCE["float32"], (y, x)
    assert not found["d_query"].any() and not found["d_key"].any()


def test_the_corner_of_the_bias_on_its_own() -> None:
    """Its first entry serves one pair alone: the last query and the first key of its window; the last, the opposite."""
    problem = PROBLEMS["2d-bias"]
    query, key, value, rpb = random_inputs(problem, batch=1, seed=0)
    assert rpb is not None
    d_out, _ = random_gradients(problem, 1)
    found = run(problem, (query, key, value, torch.zeros_like(rpb)), (d_out, None), 0.0)["d_rpb"]
    pairs = {(0, 0): ((4, 5), (2, 3)), (0, 4): ((4, 0), (2, 2)), (4, 0): ((0, 5), (2, 3)), (4, 4): ((0, 0), (2, 2))}
    for (e, f), ((y, x), (j, i)) in pairs.items():
        window = value[0, min(y, 2) : min(y, 2) + 3, min(x, 3) : min(x, 3) + 3].double()
        d_weights = (d_out[0, y, x].double() * window).sum(-1)
        wanted = ((d_out[0, y, x].double() * value[0, j, i]).sum(-1) - d_weights.mean(dim=(0, 1))) / 9
        assert relative_error(found[:, e, f], wanted) <= TOLERANCE["float32"], (e, f)


@pytest.mark.parametrize("poison", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("name", ["1d-causal-dilated", "2d-dilated", "2d-causal", "2d-half-causal", "3d-all"])
def test_keys_outside_a_window_do_not_act(name: str, poison: float) -> None:
    """On the gradient of a query that does not see them, or of keys that no query sees together with them."""
    problem = PROBLEMS[name]
    mask, _ = brute.dense(problem)
    query, key, value, rpb = random_inputs(problem, batch=1, seed=0)
    gradients = random_gradients(problem, 1)
    clean = run(problem, (query, key, value, rpb), gradients, 0.6)
    for token in range(len(mask)):
        bad_key, bad_value = key.clone(), value.clone()
        for t in (bad_key, bad_value):
            t.flatten(1, problem.rank)[:, token] = poison
        found = run(problem, (query, bad_key, bad_value, rpb), gradients, 0.6)
        sees = mask[:, token]
        apart = ~mask[sees].any(dim=0)
        for part, which in (("d_query", ~sees), ("d_key", apart), ("d_value", apart)):
            dirty, wanted = (t[part].flatten(1, problem.rank)[:, which] for t in (found, clean))
            assert torch.equal(dirty, wanted), (part, token)
        assert not found["d_query"].flatten(1, problem.rank)[:, sees].isfinite().any(), token


@pytest.mark.parametrize("poison", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("name", ["1d-causal-dilated", "2d-even", "2d-gqa", "2d-causal", "3d-all"])
def test_queries_that_do_not_see_a_key_do_not_act(name: str, poison: float) -> None:
    """On its gradient; nor on an entry of the bias that they have no key for."""
    problem = PROBLEMS[name]
    mask, index = brute.dense(problem)
    inputs = random_inputs(problem, batch=1, seed=0)
    d_out, d_lse = random_gradients(problem, 1)
    clean = run(problem, inputs, (d_out, d_lse), 0.6)
    for token in range(len(mask)):
        bad = d_out.clone()
        bad.flatten(1, problem.rank)[:, token] = poison
        found = run(problem, inputs, (bad, d_lse), 0.6)
        seen = mask[token]
        others = torch.arange(len(mask)) != token
        for part, which in (("d_query", others), ("d_key", ~seen), ("d_value", ~seen)):
            dirty, wanted = (t[part].flatten(1, problem.rank) for t in (found, clean))
            assert torch.equal(dirty[:, which], wanted[:, which]), (part, token)
            assert not dirty[:, ~which].isfinite().any(), (part, token)
        dirty, wanted = (t["d_rpb"].flatten(1) for t in (found, clean))
        used = torch.zeros(dirty.shape[1], dtype=torch.bool).index_fill(0, index[token, seen], True)
        assert torch.equal(dirty[:, ~used], wanted[:, ~used]), token
        assert not dirty[:, used].isfinite().any(), token


def test_an_empty_batch_has_a_bias_gradient_of_zero() -> None:
    problem = PROBLEMS["2d-bias"]
    found = run(problem, random_inputs(problem, 0, seed=0), random_gradients(problem, 0), 0.6)
    assert torch.equal(found["d_rpb"], torch.zeros(problem.bias_shape))


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "rpb"])
@pytest.mark.parametrize("return_lse", [False, True], ids=["out", "lse"])
def test_signature(bias: bool, return_lse: bool) -> None:
    """Arguments in the order that launchers rely on, a symbolic batch, and the problem as an attribute."""
    from tvm_na.te.backward.definition import backward

    problem = BackwardProblem.make(
        (5, 6), 3, 6, 4, heads_kv=2, head_dim_v=3, dtype="float16", bias=bias, return_lse=return_lse
    )
    func = backward(problem)
    buffers = list(func.params)
    batch, tokens = buffers[0].shape[0], ["batch", "5", "6"]
    shapes = {
        "query": [*tokens, "6", "4"], "key": [*tokens, "2", "4"], "value": [*tokens, "2", "3"], "scale": ["1"],
        "rpb": ["6", "5", "5"], "lse": [*tokens, "6"], "d_out": [*tokens, "6", "3"], "d_lse": [*tokens, "6"],
    }  # fmt: skip
    shapes |= {f"d_{name}": shapes[name] for name in ("query", "key", "value", "rpb")}
    left_out = ({"rpb", "d_rpb"} if not bias else set()) | ({"d_lse"} if not return_lse else set())
    wanted = [name for name in shapes if name not in left_out]
    assert [b.name for b in buffers] == wanted
    assert {b.name: [str(n) for n in b.shape] for b in buffers} == {name: shapes[name] for name in wanted}
    assert {b.name: str(b.dtype) for b in buffers} == {
        name: "float32" if name in ("scale", "lse", "d_lse") else "float16" for name in wanted
    }
    assert all(b.shape[0].same_as(batch) for b in buffers if len(b.shape) > 3)
    assert BackwardProblem.from_json(str(func.attrs["tvm_na.problem"])) == problem
    assert func.attrs["tvm_na.formulation"] == '{"formulation": "natural"}'
    assert func.attrs["global_symbol"] == "main"
