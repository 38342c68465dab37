"""The checks of a call's tensors: what problem_of and check_additional make of them and refuse."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
import torch

from tests.helpers import assert_says, bad, random_additional, random_inputs, random_problem
from tvm_na.problems.attention import DTYPES, NAProblem, problem_of
from tvm_na.problems.checks import check_additional

CALL = NAProblem.make((8, 9), 3, 4, 8, heads_kv=2, head_dim_v=6)


def zeros(*shape: int, **options: Any) -> torch.Tensor:
    return torch.zeros(*shape, **options)


def arguments(dtype: torch.dtype = torch.float32, **changes: Any) -> dict[str, Any]:
    """The arguments of a good call, but for ``changes``."""
    query, key, value, _ = random_inputs(CALL, batch=2, seed=0, dtype=dtype)
    return {"query": query, "key": key, "value": value, "kernel_size": 3, **changes}


# --- what is accepted


@pytest.mark.parametrize("seed", range(20))
def test_problem_of_a_call_is_the_problem_its_tensors_were_made_for(seed: int) -> None:
    rng = random.Random(seed)
    problem = random_problem(rng, rank=rng.randint(1, 3), sizes=(5, 9), dtype=rng.choice(DTYPES))
    query, key, value, rpb = random_inputs(problem, batch=2, seed=seed)
    again = problem_of(
        query, key, value, problem.kernel_size, problem.stride, problem.dilation, problem.is_causal, rpb,
        problem.return_lse, problem.rank,
    )  # fmt: skip
    assert again == problem


def test_defaults_and_integers_for_every_axis() -> None:
    problem = problem_of(**arguments())
    assert problem == CALL
    assert problem_of(**arguments(stride=2, dilation=2, is_causal=True)) == dataclasses.replace(
        CALL, stride=(2, 2), dilation=(2, 2), is_causal=(True, True)
    )


@pytest.mark.parametrize("batch", [0, 1, 7])
def test_the_batch_is_not_in_the_problem(batch: int) -> None:
    query, key, value, _ = random_inputs(CALL, batch=batch, seed=0)
    assert problem_of(query, key, value, 3) == CALL


def test_meta_tensors_and_strided_views_pass() -> None:
    on_meta: dict[str, Any] = {name: t.to("meta") for name, t in arguments().items() if isinstance(t, torch.Tensor)}
    assert problem_of(**arguments(**on_meta)) == CALL
    transposed = zeros(2, 4, 8, 9, 8).permute(0, 2, 3, 1, 4)
    assert problem_of(**arguments(query=transposed)) == CALL


# --- what is refused

SPARSE = zeros(2, 8, 9, 4, 8).to_sparse()
BAD_CALLS = [
    bad("query", None, TypeError, "torch.Tensor", "NoneType"),
    bad("query", [[1.0]], TypeError, "torch.Tensor", "list", name="list"),
    bad("key", zeros(2, 8, 9, 2, 8).numpy(), TypeError, "torch.Tensor", "ndarray", name="numpy"),
    bad("query", SPARSE, TypeError, "strided", "torch.sparse_coo", name="sparse"),
    bad("value", SPARSE, TypeError, "strided", "torch.sparse_coo", name="sparse"),
    bad("query", zeros(8, 9, 4, 8), ValueError, "5 dimensions", "(8, 9, 4, 8)", name="rank-4"),
    bad("key", zeros(2, 72, 2, 8), ValueError, "5 dimensions", "(2, 72, 2, 8)", name="rank-4"),
    bad("value", zeros(1, 2, 8, 9, 2, 6), ValueError, "5 dimensions", "(1, 2, 8, 9, 2, 6)", name="rank-6"),
    bad("query", zeros(2, 8, 9, 4, 8, dtype=torch.int32), TypeError, "bfloat16", "got int32", name="int32"),
    bad("query", zeros(2, 8, 9, 4, 8, dtype=torch.bool), TypeError, "bfloat16", "got bool", name="bool"),
    bad("query", zeros(2, 8, 9, 4, 8, dtype=torch.complex64), TypeError, "float16", "got complex64", name="complex"),
    bad("key", zeros(2, 8, 9, 2, 8).half(), TypeError, "query's dtype torch.float32", "torch.float16", name="half"),
    bad("value", zeros(2, 8, 9, 2, 6).double(), TypeError, "query's dtype torch.float32", "float64", name="double"),
    bad("key", zeros(2, 8, 9, 2, 8, device="meta"), ValueError, "query's device cpu", "got meta", name="meta"),
    bad("value", zeros(2, 8, 9, 2, 6, device="meta"), ValueError, "query's device cpu", "got meta", name="meta"),
    bad("query", zeros(2, 8, 9, 4, 0), ValueError, ">= 1", "(2, 8, 9, 4, 0)", name="no-head_dim"),
    bad("query", zeros(2, 8, 0, 4, 8), ValueError, ">= 1", "(2, 8, 0, 4, 8)", name="no-width"),
    bad("key", zeros(2, 8, 9, 0, 8), ValueError, ">= 1", "(2, 8, 9, 0, 8)", name="no-heads"),
    bad("value", zeros(2, 8, 9, 2, 0), ValueError, ">= 1", "(2, 8, 9, 2, 0)", name="no-head_dim"),
    bad("key", zeros(3, 8, 9, 2, 8), ValueError, "(2, 8, 9, 2, 8)", "got (3, 8, 9, 2, 8)", name="batch"),
    bad("key", zeros(2, 9, 8, 2, 8), ValueError, "(2, 8, 9, 2, 8)", "got (2, 9, 8, 2, 8)", name="spatial"),
    bad("key", zeros(2, 8, 9, 2, 6), ValueError, "(2, 8, 9, 2, 8)", "got (2, 8, 9, 2, 6)", name="head_dim"),
    bad("value", zeros(1, 8, 9, 2, 6), ValueError, "(2, 8, 9, 2, 6)", "got (1, 8, 9, 2, 6)", name="batch"),
    bad("value", zeros(2, 8, 8, 2, 6), ValueError, "(2, 8, 9, 2, 6)", "got (2, 8, 8, 2, 6)", name="spatial"),
    bad("value", zeros(2, 8, 9, 4, 6), ValueError, "(2, 8, 9, 2, 6)", "got (2, 8, 9, 4, 6)", name="heads"),
    bad("kernel_size", 9, ValueError, "axis 0", "9 * 1 = 9 > 8"),
    bad("kernel_size", (3, True), TypeError, "integer", "bool True"),
    bad("kernel_size", (3, 3, 3), ValueError, "2 values", "got 3"),
    bad("stride", 4, ValueError, "stride <= kernel_size on axis 0", "4 > 3"),
    bad("dilation", (3,), ValueError, "2 values", "got 1"),
    bad("is_causal", 0, TypeError, "bool", "int 0"),
    bad("return_lse", 1, TypeError, "bool", "1"),
    bad("rpb", 0.5, TypeError, "torch.Tensor", "float"),
    bad("rpb", zeros(4, 25), ValueError, "3 dimensions", "(4, 25)", name="rank-2"),
    bad("rpb", zeros(4, 5, 3), ValueError, "(4, 5, 5)", "got (4, 5, 3)", name="axis"),
    bad("rpb", zeros(2, 5, 5), ValueError, "(4, 5, 5)", "got (2, 5, 5)", name="heads"),
    bad("rpb", zeros(4, 5, 5).half(), TypeError, "query's dtype torch.float32", "got torch.float16", name="half"),
    bad("rpb", zeros(4, 5, 5, device="meta"), ValueError, "query's device cpu", "got meta", name="meta"),
    bad("rpb", zeros(4, 5, 5).to_sparse(), TypeError, "strided", "torch.sparse_coo", name="sparse"),
]


@pytest.mark.parametrize(("argument", "changes", "error", "says"), BAD_CALLS)
def test_bad_call(argument: str, changes: dict[str, Any], error: type[Exception], says: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        problem_of(**arguments(**changes))
    assert_says(caught, argument, error, says)


def test_heads_that_are_no_multiple_of_heads_kv() -> None:
    with pytest.raises(ValueError, match=r"^heads: required a multiple of heads_kv=3, got 4$"):
        problem_of(**arguments(key=zeros(2, 8, 9, 3, 8), value=zeros(2, 8, 9, 3, 6)))


@pytest.mark.parametrize("rank", [1, 3])
def test_tensors_of_another_rank(rank: int) -> None:
    with pytest.raises(ValueError, match=rf"^query: required {rank + 3} dimensions .*\(2, 8, 9, 4, 8\)$"):
        problem_of(**arguments(rank=rank))


# --- additional keys and values

KEYS, VALUES = random_additional(CALL, batch=2, extra=5, seed=0)
BAD_ADDITIONAL = [
    bad("additional_keys", None, ValueError, "together with its counterpart", "got None"),
    bad("additional_values", None, ValueError, "together with its counterpart", "got None"),
    bad("additional_keys", 1.0, TypeError, "torch.Tensor", "float"),
    bad("additional_values", [1.0], TypeError, "torch.Tensor", "list"),
    bad("additional_keys", zeros(2, 5, 8), ValueError, "4 dimensions", "(2, 5, 8)", name="rank-3"),
    bad("additional_values", zeros(2, 1, 5, 2, 6), ValueError, "4 dimensions", "(2, 1, 5, 2, 6)", name="rank-5"),
    bad("additional_keys", zeros(1, 5, 2, 8), ValueError, "(2, 5, 2, 8)", "got (1, 5, 2, 8)", name="batch"),
    bad("additional_keys", zeros(2, 5, 4, 8), ValueError, "(2, 5, 2, 8)", "got (2, 5, 4, 8)", name="heads"),
    bad("additional_keys", zeros(2, 5, 2, 6), ValueError, "(2, 5, 2, 8)", "got (2, 5, 2, 6)", name="head_dim"),
    bad("additional_values", zeros(2, 4, 2, 6), ValueError, "(2, 5, 2, 6)", "got (2, 4, 2, 6)", name="extra"),
    bad("additional_values", zeros(2, 5, 2, 8), ValueError, "(2, 5, 2, 6)", "got (2, 5, 2, 8)", name="head_dim"),
    bad("additional_keys", KEYS.half(), TypeError, "query's dtype torch.float32", "torch.float16", name="half"),
    bad("additional_values", VALUES.long(), TypeError, "query's dtype torch.float32", "torch.int64", name="int"),
    bad("additional_values", VALUES.to("meta"), ValueError, "query's device cpu", "got meta", name="meta"),
    bad("additional_keys", KEYS.to_sparse(), TypeError, "strided", "torch.sparse_coo", name="sparse"),
]


def additional(**changes: Any) -> bool:
    query, key, value, _ = random_inputs(CALL, batch=2, seed=0)
    pair = {"additional_keys": KEYS, "additional_values": VALUES, **changes}
    return check_additional(pair["additional_keys"], pair["additional_values"], query, key, value)


def test_additional_keys_and_values_come_together_or_not_at_all() -> None:
    assert additional() is True
    assert additional(additional_keys=None, additional_values=None) is False


@pytest.mark.parametrize(("argument", "changes", "error", "says"), BAD_ADDITIONAL)
def test_bad_additional(argument: str, changes: dict[str, Any], error: type[Exception], says: Any) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        additional(**changes)
    assert_says(caught, argument, error, says)
