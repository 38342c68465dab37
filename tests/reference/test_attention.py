"""The eager reference against the brute-force oracle, torch's own attention, and numerical derivatives."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests import brute
from tests.conftest import TOLERANCE
from tests.helpers import random_additional, random_inputs, random_problem, reference64, relative_error
from tests.ops.gradients import assert_close
from tests.te.expressions import assert_local
from tvm_na.problems.attention import DTYPES, NAProblem
from tvm_na.reference.attention import neighborhood_attention

SIZES = {1: (5, 30), 2: (5, 11), 3: (2, 6)}
CAUSAL = NAProblem.make((7, 9), 3, 2, 8, dilation=(2, 1), stride=(1, 2), is_causal=(True, True), dtype="float64")
PROBLEMS = {
    "plain": NAProblem.make((7, 9), 3, 2, 8, dtype="float64"),
    "even": NAProblem.make((7, 9), (4, 2), 2, 8, stride=2, dtype="float64"),
    "dilated": NAProblem.make((7, 9), 3, 4, 8, dilation=2, heads_kv=2, head_dim_v=5, dtype="float64"),
    "causal": CAUSAL,
    "half-causal": NAProblem.make((7, 9), 4, 2, 8, is_causal=(False, True), dtype="float64"),
    "1d-causal": NAProblem.make(13, 4, 2, 8, dilation=2, stride=3, is_causal=True, dtype="float64"),
    "3d": NAProblem.make((4, 3, 5), (3, 1, 2), 2, 8, is_causal=(True, False, False), dtype="float64"),
}


# --- values


@pytest.mark.parametrize("seed", range(16))
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_random_problems_against_brute_force(rank: int, seed: int) -> None:
    rng = random.Random(1000 * rank + seed)
    problem = random_problem(rng, rank=rank, sizes=SIZES[rank], dtype="float64")
    inputs = random_inputs(problem, batch=2, seed=seed)
    scale = rng.choice([problem.head_dim**-0.5, -0.3, 0.0])
    additional = random_additional(problem, 2, rng.randint(1, 4), seed) if rng.random() < 0.5 else ()
    found = neighborhood_attention(problem, *inputs[:3], scale, inputs[3], *additional)
    wanted = brute.attention(problem, *inputs[:3], scale, inputs[3], *additional)
    assert_close(found, wanted, note=str(problem))


@pytest.mark.parametrize("kernel_size", [1, 2, 3, 8], ids="k{}".format)
def test_smallest_and_largest_kernels(kernel_size: int) -> None:
    problem = NAProblem.make((8, 8), kernel_size, 2, 4, dtype="float64", bias=True)
    query, key, value, rpb = random_inputs(problem, batch=1, seed=0)
    found = neighborhood_attention(problem, query, key, value, 0.7, rpb)
    assert_close(found, brute.attention(problem, query, key, value, 0.7, rpb))
    if kernel_size == 1:
        assert torch.equal(found[0], value)


@pytest.mark.parametrize("is_causal", [False, True], ids=["all", "causal"])
@pytest.mark.parametrize("spatial", [(12,), (4, 5), (3, 2, 4)], ids=["1d", "2d", "3d"])
def test_a_window_of_the_whole_map_is_dense_attention(spatial: tuple[int, ...], is_causal: bool) -> None:
    causal = (is_causal, *[False] * (len(spatial) - 1))
    problem = NAProblem.make(spatial, spatial, 4, 8, heads_kv=2, head_dim_v=6, is_causal=causal, dtype="float64")
    query, key, value, _ = random_inputs(problem, batch=2, seed=0)
    tokens = math.prod(spatial)
    first = torch.arange(tokens) // (tokens // spatial[0])
    mask = first[:, None] >= first[None, :] if is_causal else torch.ones(tokens, tokens, dtype=torch.bool)
    q, k, v = (t.reshape(2, tokens, *t.shape[-2:]).transpose(1, 2) for t in (query, key, value))
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.4, enable_gqa=True)
    out, _ = neighborhood_attention(problem, query, key, value, 0.4)
    assert relative_error(out, expected.transpose(1, 2).reshape(out.shape)) <= TOLERANCE["float64"]


def test_additional_keys_alone_matter_where_the_scores_say_so() -> None:
    """Keys that win every softmax give their value; keys with a score of -inf change nothing."""
    query, key, value, _ = random_inputs(CAUSAL, batch=2, seed=0)
    query = query.abs() + 0.1
    keys, values = random_additional(CAUSAL, 2, 1, seed=0)
    alone, lse = neighborhood_attention(CAUSAL, query, key, value, 1.0)
    out, _ = neighborhood_attention(CAUSAL, query, key, value, 1.0, None, torch.full_like(keys, 1e4), values)
    assert relative_error(out, values[:, :, None].expand_as(out)) <= TOLERANCE["float64"]
    lost = neighborhood_attention(CAUSAL, query, key, value, 1.0, None, torch.full_like(keys, -math.inf), values)
    assert_close(lost, (alone, lse))
    none = neighborhood_attention(CAUSAL, query, key, value, 1.0, None, keys[:, :0], values[:, :0])
    assert torch.equal(none[0], alone)


@pytest.mark.parametrize("name", PROBLEMS)
def test_empty_batch(name: str) -> None:
    problem = dataclasses.replace(PROBLEMS[name], bias=True)
    query, key, value, rpb = random_inputs(problem, batch=0, seed=0)
    out, lse = neighborhood_attention(problem, query, key, value, 1.0, rpb)
    assert out.shape == (0, *problem.spatial, problem.heads, problem.head_dim_v)
    assert lse.shape == (0, *problem.spatial, problem.heads)


def test_transposed_inputs() -> None:
    query, key, value, _ = random_inputs(CAUSAL, batch=2, seed=0)
    q, k, v = (t.transpose(1, 3).contiguous().transpose(1, 3) for t in (query, key, value))
    assert not q.is_contiguous()
    found = neighborhood_attention(CAUSAL, q, k, v, 1.0)
    assert_close(found, neighborhood_attention(CAUSAL, query, key, value, 1.0))


# --- dtypes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_dtype_is_within_its_budget(name: str, dtype: str) -> None:
    problem = dataclasses.replace(PROBLEMS[name], dtype=dtype, bias=True)
    inputs = random_inputs(problem, batch=2, seed=0)
    out, lse = neighborhood_attention(problem, *inputs[:3], 0.5, inputs[3])
    ref_out, ref_lse = reference64(problem, inputs, 0.5)
    assert out.dtype == getattr(torch, dtype)
    assert lse.dtype == getattr(torch, problem.accum_dtype)
    assert relative_error(out, ref_out) <= TOLERANCE[dtype]
    assert relative_error(lse, ref_lse) <= TOLERANCE[problem.accum_dtype]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_accumulates_in_float32(dtype: torch.dtype) -> None:
    """Only the output is rounded; scores beyond float16's range do no harm."""
    problem = NAProblem.make((7, 9), 3, 2, 64, bias=True)
    inputs = random_inputs(problem, batch=1, seed=0, dtype=dtype)
    query, key, value, rpb = (60 * inputs[0], 60 * inputs[1], inputs[2], inputs[3])
    assert rpb is not None
    assert torch.einsum("...d,...d->...", query.float(), key.float()).abs().max() > torch.finfo(torch.float16).max
    out, lse = neighborhood_attention(problem, query, key, value, 1e-5, rpb)
    out32, lse32 = neighborhood_attention(problem, query.float(), key.float(), value.float(), 1e-5, rpb.float())
    assert torch.equal(out, out32.to(dtype))
    assert torch.equal(lse, lse32)


# --- gradients

GRADIENTS = {
    "1d": NAProblem.make(7, 3, 1, 2, dtype="float64"),
    "1d-even-dilated": NAProblem.make(8, 2, 2, 2, dilation=3, stride=2, heads_kv=1, head_dim_v=3, dtype="float64"),
    "1d-causal": NAProblem.make(8, 3, 1, 2, dilation=2, stride=2, is_causal=True, dtype="float64"),
    "2d": NAProblem.make((4, 3), 3, 2, 2, heads_kv=1, head_dim_v=1, dtype="float64"),
    "2d-half-causal": NAProblem.make((3, 4), (3, 2), 1, 2, is_causal=(True, False), dtype="float64"),
    "3d": NAProblem.make((3, 2, 2), (3, 1, 2), 1, 2, is_causal=(False, True, False), dtype="float64"),
}


def differentiable(problem: NAProblem, additional: bool) -> list[Tensor]:
    """query, key, value, rpb[, additional keys, additional values], to be differentiated."""
    inputs: list[Any] = list(random_inputs(dataclasses.replace(problem, bias=True), batch=1, seed=0))
    inputs += random_additional(problem, 1, 2, seed=1) if additional else ()
    return [t.requires_grad_() for t in inputs]


def of_inputs(problem: NAProblem) -> Callable[..., tuple[Tensor, Tensor]]:
    return lambda *t: neighborhood_attention(problem, *t[:3], 0.8, *t[3:])


@pytest.mark.parametrize("additional", [False, True], ids=["windows", "additional"])
@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_output_and_lse(name: str, additional: bool) -> None:
    call, inputs = of_inputs(GRADIENTS[name]), differentiable(GRADIENTS[name], additional)
    assert torch.autograd.gradcheck(call, inputs, fast_mode=True)
    grads = torch.autograd.grad(call(*inputs)[1].sum(), inputs, allow_unused=True)
    unused = {2, 5} if additional else {2}  # the log-sum-exp knows no values
    assert {n for n, g in enumerate(grads) if g is None} == unused
    assert all(g.abs().max() > 0 for g in grads if g is not None)


def test_second_derivatives() -> None:
    problem = GRADIENTS["1d-causal"]
    assert torch.autograd.gradgradcheck(of_inputs(problem), differentiable(problem, additional=False))


@pytest.mark.parametrize("name", ["dilated", "causal", "3d"])
def test_gradients_against_brute_force(name: str) -> None:
    problem = PROBLEMS[name]
    inputs = differentiable(problem, additional=True)
    weights = torch.Generator().manual_seed(7)
    grads = []
    for attention in (neighborhood_attention, brute.attention):
        out, lse = attention(problem, inputs[0], inputs[1], inputs[2], 0.8, *inputs[3:])
        weights.manual_seed(7)
        loss = (out * torch.randn(out.shape, generator=weights, dtype=torch.float64)).sum() + (lse * lse).sum()
        grads.append(torch.autograd.grad(loss, inputs))
    assert_close(*grads)


# --- locality


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf], ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_key_acts_on_those_that_see_it_alone(name: str, poison: float) -> None:
    problem = PROBLEMS[name]
    assert_local(problem, lambda inputs: neighborhood_attention(problem, *inputs[:3], 0.8, inputs[3]), poison, step=5)


@pytest.mark.parametrize("name", PROBLEMS)
def test_gradients_are_as_local(name: str) -> None:
    """A poisoned token leaves the gradients of what it does not touch: masked neighbors are not 0 * NaN."""
    problem = PROBLEMS[name]
    mask, _ = brute.dense(problem)
    clean = [t.requires_grad_() for t in random_inputs(problem, batch=1, seed=0)[:3]]
    wanted = [g.flatten(1, problem.rank) for g in gradients(problem, clean)]
    for token in [0, len(mask) // 2, len(mask) - 1]:
        dirty = [t.detach().clone() for t in clean]
        for t in dirty:
            t.flatten(1, problem.rank)[:, token] = math.nan
        found = [g.flatten(1, problem.rank) for g in gradients(problem, [t.requires_grad_() for t in dirty])]
        touched = mask[:, token].clone()  # queries that see the token, and the token's own
        touched[token] = True
        reached = mask[touched].any(dim=0)  # the keys of those queries
        assert torch.equal(found[0][:, ~touched], wanted[0][:, ~touched]), token
        for ours, theirs in zip(found[1:], wanted[1:], strict=True):
            assert torch.equal(ours[:, ~reached], theirs[:, ~reached]), token


def gradients(problem: NAProblem, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    out, lse = neighborhood_attention(problem, inputs[0], inputs[1], inputs[2], 0.8)
    return torch.autograd.grad((out.sum() + lse.sum()), inputs)
