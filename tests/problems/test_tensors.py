"""The checks of a call's tensors: what problem_of and check_additional make of them and refuse."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import pytest
import torch

from tests.helpers import assert_says, random_inputs, random_problem
from tests.problems.bad_calls import BAD_ADDITIONAL, BAD_CALLS, BAD_WINDOWS, CALL, KEYS, VALUES, arguments, zeros
from tvm_na.problems.attention import DTYPES, problem_of
from tvm_na.problems.checks import check_additional

# --- what is accepted


@pytest.mark.parametrize("seed", range(20))
def test_problem_of_a_call_is_the_problem_its_tensors_were_made_for(seed: int) -> None:
    rng = random.Random(seed)
    problem = random_problem(rng, rank=rng.randint(1, 3), sizes=(5, 9), dtype=rng.choice(DTYPES))
    query, key, value, rpb = random_inputs(problem, batch=2, seed=seed)
    assert problem_of(query, key, value, *problem.window, rpb, problem.return_lse, problem.rank) == problem


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


@pytest.mark.parametrize(("argument", "changes", "error", "says"), BAD_CALLS + BAD_WINDOWS)
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
