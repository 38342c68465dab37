"""BackwardProblem, and the problems of all operators as one type."""

from __future__ import annotations

import dataclasses
import json
import random
from typing import Any

import pytest

from tests.helpers import random_problem
from tests.te.dense_kernels import random_problem as random_dense
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.problems.base import Problem
from tvm_na.problems.dense import DenseProblem
from tvm_na.problems.registry import PROBLEMS, problem_from_json
from tvm_na.problems.unfused import KINDS, UnfusedProblem
from tvm_na.reference.cases import make_case

FORWARD = NAProblem((8, 9), (3, 2), (1, 2), (2, 1), (False, True), 4, 2, 8, 6, "float64", True, True)
BACKWARD = BackwardProblem(FORWARD)
DENSE = DenseProblem.make(49, 32, 48, residual=True)
UNFUSED = UnfusedProblem.make("av", (8, 9), 3, 4, 16)


# --- the value


def test_it_is_the_attention_and_nothing_else() -> None:
    made = BackwardProblem.make((8, 9), 3, 4, 16, bias=True)
    assert made == BackwardProblem(NAProblem.make((8, 9), 3, 4, 16, bias=True))
    assert made != made.forward and len({made, made.forward}) == 2
    assert (BACKWARD.spatial, BACKWARD.rank, BACKWARD.dtype, BACKWARD.accum_dtype) == ((8, 9), 2, "float64", "float64")
    assert BackwardProblem.make(9, 3, 1, 8, dtype="float16").accum_dtype == "float32"
    assert str(BACKWARD) == f"backward of {FORWARD}"
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.forward = FORWARD  # type: ignore[misc]


@pytest.mark.parametrize("wrong", [BACKWARD, DENSE, "8x9", None])
def test_what_is_no_attention_has_no_gradients(wrong: Any) -> None:
    with pytest.raises(TypeError, match=f"forward: required an NAProblem, got {type(wrong).__name__}"):
        BackwardProblem(wrong)


def test_useful_operations_are_those_of_five_products() -> None:
    pairs = 8 * 9 * 4 * 3 * 2
    assert FORWARD.useful_flops == 2 * pairs * (8 + 6)
    assert BACKWARD.useful_flops == 2 * pairs * (3 * 8 + 2 * 6)
    assert BackwardProblem.make(9, 3, 1, 8).useful_flops == 5 * NAProblem.make(9, 3, 1, 8).useful_flops // 2


# --- as text


def drawn(operator: str | None, rng: random.Random) -> Problem:
    """A problem of an operator with any options."""
    if operator == "dense":
        return random_dense(rng, rng.choice(["float32", "float64"]))
    forward = random_problem(rng, rank=rng.choice([1, 2, 3]))
    if operator == "unfused":
        kind = rng.choice(KINDS)
        step = dataclasses.replace(forward, head_dim_v=forward.head_dim, return_lse=False, bias=kind == "qk")
        return UnfusedProblem(kind, step)
    return forward if operator is None else BackwardProblem(forward)


@pytest.mark.parametrize("operator", PROBLEMS)
def test_json_is_canonical_and_comes_back(operator: str | None) -> None:
    rng = random.Random(0)
    for _ in range(90):
        problem = drawn(operator, rng)
        text = problem.to_json()
        fields = json.loads(text)
        assert list(fields) == sorted(fields) and " " not in text
        assert fields.get("operator") == operator
        again = type(problem).from_json(json.dumps(dict(reversed(fields.items())), indent=1))
        assert again == problem == problem_from_json(text) == type(problem).of_fields(problem.fields())
        assert hash(again) == hash(problem) and again.to_json() == text


def test_json_of_a_step_is_that_of_the_attention_and_its_own() -> None:
    fields = json.loads(FORWARD.to_json())
    assert json.loads(BACKWARD.to_json()) == {**fields, "operator": "backward"}
    fields = json.loads(UNFUSED.forward.to_json())
    assert json.loads(UNFUSED.to_json()) == {**fields, "operator": "unfused", "kind": "av"}


@pytest.mark.parametrize("text", ["attention", "backward", "dense", "[]", "3", '"backward"', "null"])
@pytest.mark.parametrize("kind", [BackwardProblem, DenseProblem, UnfusedProblem])
def test_json_of_something_else_is_refused(kind: type[Problem], text: str) -> None:
    others: dict[str, Problem] = {"attention": FORWARD, "backward": BACKWARD, "dense": DENSE}
    if text == kind.operator:
        text = "attention"
    wrong = others[text].to_json() if text in others else text
    with pytest.raises(ValueError, match=f'problem: required a JSON object with "operator":"{kind.operator}", got'):
        kind.from_json(wrong)


def test_json_is_validated() -> None:
    for problem in (FORWARD, BACKWARD):
        with pytest.raises(ValueError, match="heads: required a multiple of heads_kv=3, got 4"):
            type(problem).from_json(problem.to_json().replace('"heads_kv":2', '"heads_kv":3'))
    with pytest.raises(TypeError):
        BackwardProblem.from_json(BACKWARD.to_json().replace('"bias"', '"biases"'))


# --- among the problems of all operators


def test_each_operator_reads_its_own() -> None:
    assert [type(p) for p in (FORWARD, BACKWARD, DENSE, UNFUSED)] == list(PROBLEMS.values())
    with pytest.raises(ValueError, match="operator: required one of backward, dense, unfused, or none, got 'ring'"):
        problem_from_json(BACKWARD.to_json().replace('"backward"', '"ring"'))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("lse", [False, True])
def test_arguments_with_a_batch_are_those_of_the_kernel(bias: bool, lse: bool) -> None:
    """As the PrimFunc has them, and as inputs and outputs are made for it."""
    from tvm_na.schedules import spaces_for
    from tvm_na.targets.target import detect_target
    from tvm_na.tune.metaschedule import import_metaschedule

    batch = 5  # no other size is
    forward = NAProblem.make((6, 7), 3, 4, 8, heads_kv=2, head_dim_v=12, bias=bias, return_lse=lse)
    for problem in (forward, BackwardProblem(forward)):
        case = make_case(problem, batch, "cpu")
        tensors = [*case.inputs, *case.outputs()]
        described = problem.arguments()
        assert [a.shape_for(batch) for a in described] == [tuple(t.shape) for t in tensors]
        assert [a.dtype for a in described] == [str(t.dtype).removeprefix("torch.") for t in tensors]
        (space,) = spaces_for(problem, detect_target())
        func = space.formulations(problem, detect_target(), batch)[0]
        arguments = import_metaschedule().arg_info.ArgInfo.from_prim_func(func)
        assert [tuple(int(n) for n in a.shape) for a in arguments] == [tuple(t.shape) for t in tensors]
        assert [str(a.dtype) for a in arguments] == [str(t.dtype).removeprefix("torch.") for t in tensors]
