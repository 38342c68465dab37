"""UnfusedProblem: the value, its text, and the cases that its kernels are checked with."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from tvm_na.problems.attention import NAProblem
from tvm_na.problems.unfused import KINDS, UnfusedProblem
from tvm_na.reference.case import WrongNumbers
from tvm_na.reference.cases import budget_of, make_case
from tvm_na.tune.tasks import TuneTask, tasks_from_file

FORWARD = NAProblem((8, 9), (3, 2), (1, 2), (2, 1), (False, True), 4, 2, 8, 8, "float64", True)
PROBLEM = UnfusedProblem("qk", FORWARD)


def test_it_is_one_step_of_an_attention() -> None:
    assert UnfusedProblem.make("av", (8, 9), 3, 4, 16) == UnfusedProblem("av", NAProblem.make((8, 9), 3, 4, 16))
    assert (PROBLEM.spatial, PROBLEM.rank, PROBLEM.dtype, PROBLEM.accum_dtype) == ((8, 9), 2, "float64", "float64")
    assert (PROBLEM.channels, PROBLEM.window, str(PROBLEM)) == (8, 6, f"qk of {FORWARD}")
    assert PROBLEM.useful_flops == 2 * 8 * 9 * 4 * 6 * 8
    assert len({UnfusedProblem.make(kind, 9, 3, 1, 8) for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize(
    ("kind", "forward", "error", "says"),
    [
        ("sum", FORWARD, ValueError, "kind: required one of qk, dots, av, .*, bias_sums, bias_parts, got 'sum'"),
        ("qk", PROBLEM, TypeError, "forward: required an NAProblem, got UnfusedProblem"),
        ("av", FORWARD, ValueError, "forward: required no bias for av, got"),
        ("qk", NAProblem.make(9, 3, 1, 8, head_dim_v=4), ValueError, "forward: required one head dimension"),
        ("qk", NAProblem.make(9, 3, 1, 8, return_lse=True), ValueError, "and no log-sum-exp"),
        ("qk", NAProblem.make((9, 9), 3, 1, 16, dtype="tf32"), ValueError, "forward: required a dtype that tensors"),
    ],
)
def test_what_is_no_such_step_is_named(kind: str, forward: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        UnfusedProblem(kind, forward)


def test_json_without_a_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="problem: required a kind"):
        UnfusedProblem.from_json('{"operator":"unfused"}')


def test_a_file_of_tasks_may_name_it(tmp_path: Any) -> None:
    file = tmp_path / "problems.json"
    entry = {"operator": "unfused", "kind": "av", "spatial": [8, 9], "kernel_size": 3, "heads": 4, "head_dim": 16}
    file.write_text(json.dumps([{**entry, "weight": 2}]))
    assert tasks_from_file(file) == [TuneTask(UnfusedProblem.make("av", (8, 9), 3, 4, 16), 2.0)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_case_has_the_arguments_of_a_kernel(kind: str) -> None:
    options: dict[str, Any] = {"heads_kv": 2, "is_causal": True, "bias": kind == "qk"}
    problem = UnfusedProblem.make(kind, (5, 6), 3, 4, 8, **options)
    case = make_case(problem, 4, "cpu")
    outputs = case.outputs()
    tensors = [*case.inputs, *outputs]
    assert [len(t) == 4 and t.ndim == 5 for t in tensors] == [argument.has_batch for argument in problem.arguments()]
    elements = sum(t[0].numel() if t.ndim == 5 else t.numel() for t in tensors if t.shape != (1,))
    assert problem.bytes == 4 * elements
    with pytest.raises(WrongNumbers):
        case.check(outputs, budget_of(problem))  # NaN
    (out,), (right,) = outputs, case.expected
    out.copy_(right if kind == "bias_sums" else right[torch.arange(4) % 3])
    case.check(outputs, budget_of(problem))
    out.view(-1)[0] = 7.0 if kind != "qk" else -torch.inf
    with pytest.raises(WrongNumbers):
        case.check(outputs, budget_of(problem))
