"""Gradients in the tuner and among its records, together with attention."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.conftest import GRADIENT_TOLERANCE, TOLERANCE
from tests.helpers import random_problem, relative_error
from tests.records.tuned import commit_drawn
from tvm_na.jit import build
from tvm_na.measure import rpc as measure_remote
from tvm_na.measure.local import Conditions, Kernel
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.problems.dense import DenseProblem
from tvm_na.records import select
from tvm_na.reference import attention as reference
from tvm_na.reference.case import Case, WrongNumbers
from tvm_na.reference.cases import budget_of, case_of, make_case
from tvm_na.report.data import short_names
from tvm_na.targets.target import detect_target
from tvm_na.tune.options import batch_for, bytes_needed
from tvm_na.tune.tasks import TuneTask, tasks_from_file

TARGET = detect_target()
FORWARD = NAProblem.make((7, 6), 3, 1, 4, bias=True)
BACKWARD = BackwardProblem(FORWARD)
NEAR = BackwardProblem(dataclasses.replace(FORWARD, heads=2, heads_kv=2))


def test_attention_and_its_gradients_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_NA_NUM_THREADS", "1")
    problems = (FORWARD, BACKWARD, DenseProblem.make(7, 4, 4))
    for one, other in itertools.product(problems, problems):
        assert (one.distance(other) is None) == (one is not other)
    assert BACKWARD.distance(NEAR) == FORWARD.distance(NEAR.forward) == 1.0
    monkeypatch.setattr(select, "user_folder", lambda name: tmp_path)
    commit_drawn(tmp_path, FORWARD)
    assert select.select(BACKWARD, TARGET).kind == "default"
    lse = dataclasses.replace(FORWARD, return_lse=True)
    found = select.select(lse, TARGET)
    assert found.kind == "nearest" and found.record is not None and found.record.problem == FORWARD


def test_an_rpc_session_measures_them() -> None:
    """In this process: the session that servers have, without the server."""
    from tvm import rpc

    kernel = build.kernel_for(BACKWARD, TARGET, records="off")
    conditions = Conditions(1, repeats=4, budget=0.01)
    for batch in (2, 5):
        found = measure_remote.measured_in(rpc.LocalSession(), Kernel(kernel.file, BACKWARD, batch=batch), conditions)
        assert found.failure is None and len(found.run_secs) >= 4


# --- shown


def test_a_report_names_them_and_counts_their_bytes() -> None:
    names, common = short_names([BACKWARD, NEAR])
    assert names == ["heads 1", "heads 2"] and common.startswith("backward, 7x6, dim 4")
    # Query, key, value, the output's gradient, lse and bias are read, three gradients and that of the bias written.
    assert BACKWARD.bytes == 4 * (7 * 6 * (7 * 4 + 1) + 2 * 5 * 5)
    other = BackwardProblem.make((4, 5), 3, 6, 8, heads_kv=2, head_dim_v=16, dtype="float64")
    assert other.bytes == 8 * 20 * (2 * 6 * 8 + 6 * 16 + 2 * 2 * (8 + 16) + 6)


# --- what is to be tuned


def test_files_have_them(tmp_path: Path) -> None:
    file = tmp_path / "problems.json"
    spelled_out = {"operator": "backward", "spatial": [7, 6], "kernel_size": 3, "heads": 1, "head_dim": 4, "bias": True}
    entries = [spelled_out, {**json.loads(BACKWARD.to_json()), "weight": 3}, json.loads(FORWARD.to_json())]
    file.write_text(json.dumps(entries), encoding="utf-8")
    assert tasks_from_file(file) == [TuneTask(BACKWARD, 4.0), TuneTask(FORWARD)]
    for wrong, says in (
        ({**spelled_out, "heads": 0}, "heads: required an integer >= 1, got 0"),
        (
            {**spelled_out, "operator": ["backward"]},
            r"operator: required one of backward, dense, .*, got \('backward',\)",
        ),
        ({**spelled_out, "operator": 1}, "operator: required one of backward, dense, unfused, or none for .*, got 1"),
    ):
        file.write_text(json.dumps([wrong]), encoding="utf-8")
        with pytest.raises(ValueError, match=f"problems: {says}.*entry 0"):
            tasks_from_file(file)


def test_the_batch_must_fit() -> None:
    large = BackwardProblem.make((256, 256), 7, 2, 64)
    most = large.largest_batch("llvm")
    assert batch_for(large, TARGET, most, None, None) == most
    with pytest.raises(ValueError, match=f"batch: required at most {most} .* for backward of 256x256"):
        batch_for(large, TARGET, most + 1, None, None)
    assert bytes_needed(large, 4) > bytes_needed(large.forward, 4)


# --- inputs, and what is right


def gradients(problem: BackwardProblem, case: Case) -> list[Tensor]:
    """The log-sum-exp and the gradients of a whole case, by autograd of the reference in float64."""
    forward = problem.forward
    query, key, value, scale, *others = (t.double() for t in case.inputs)
    rpb = [others.pop(0)] if forward.bias else []
    leaves = [t.clone().requires_grad_() for t in (query, key, value, *rpb)]
    out, lse = reference.neighborhood_attention(forward, *leaves[:3], float(scale), *leaves[3:])
    results = [out, lse][: 1 + forward.return_lse]
    return [lse.detach(), *torch.autograd.grad(results, leaves, others[1:])]


@pytest.mark.parametrize(("seed", "batch"), [(0, 1), (1, 2), (2, 3), (3, 5), (4, 7)])
def test_a_case_has_what_autograd_computes(seed: int, batch: int) -> None:
    forward = random_problem(
        random.Random(seed), sizes=(4, 9), bias=seed % 3 != 1, return_lse=bool(seed % 2), head_dim=4, dtype="float64"
    )
    problem = BackwardProblem(forward)
    case = make_case(problem, batch, "cpu")
    lse, *right = gradients(problem, case)
    assert relative_error(case.inputs[4 + forward.bias], lse) < 1e-14
    assert [t.shape for t in case.outputs()] == [t.shape for t in right]
    assert all(t.isnan().all() for t in case.outputs())
    case.check(right, 1e-13)
    names = [argument.name for argument in problem.arguments() if argument.role == "output"]
    for number, name in enumerate(names):
        wrong = [t.clone(memory_format=torch.contiguous_format) for t in right]
        wrong[number].view(-1)[-1] += 0.5 * right[number].abs().max()
        with pytest.raises(WrongNumbers, match=f"{name}.*: required a relative error"):
            case.check(wrong, 1e-13)
        wrong[number] = right[number] * torch.nan
        with pytest.raises(WrongNumbers, match=name):
            case.check(wrong, 1e-13)


def test_halves_are_drawn_as_they_are_and_judged_in_float64() -> None:
    problem = BackwardProblem.make((5, 6), 3, 1, 8, dtype="bfloat16", bias=True, return_lse=True)
    case = case_of(problem, 2)
    low, single = torch.bfloat16, torch.float32
    assert [t.dtype for t in case.inputs] == [low, low, low, single, low, single, low, single]
    assert [t.dtype for t in case.outputs()] == [low] * 4
    assert {t.dtype for t in case.expected} == {torch.float64}
    case.check(gradients(problem, case)[1:], 1e-3)  # of a log-sum-exp in float32


def test_budgets() -> None:
    assert budget_of(FORWARD) == TOLERANCE["float32"]
    for dtype, tolerance in (TOLERANCE | GRADIENT_TOLERANCE).items():
        assert budget_of(BackwardProblem.make(9, 3, 1, 8, dtype=dtype)) == tolerance
