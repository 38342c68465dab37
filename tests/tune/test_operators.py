"""Each operator in the tuner and among records of others; for GPUs, without one, times are invented."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tvm.rpc import LocalSession

from tests.cli.invoking import invoke
from tests.cuda.test_limits import needs_compiler
from tests.records.tuned import commit_drawn
from tests.tune.runs import run
from tests.tune.test_cuda import FATBIN, pretended
from tvm_na.jit import build
from tvm_na.measure import rpc
from tvm_na.measure.local import Conditions, Kernel
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.problems.dense import DenseProblem
from tvm_na.problems.registry import Problem
from tvm_na.problems.unfused import UnfusedProblem
from tvm_na.records import select
from tvm_na.records.read import records_in
from tvm_na.records.record import Record
from tvm_na.records.replay import change_since, point_of, replayed
from tvm_na.records.trace import read_trace
from tvm_na.records.write import trace_as_json
from tvm_na.reference.cases import budget_of, case_of
from tvm_na.report.data import load
from tvm_na.schedules.base import Plan
from tvm_na.schedules.describe import describe
from tvm_na.targets.target import NATarget, detect_target, parse_target
from tvm_na.te.dense.product import tile_of
from tvm_na.tune.features import with_changes
from tvm_na.tune.options import GPU_BATCH, batch_for, bytes_needed
from tvm_na.tune.remeasure import remeasure
from tvm_na.tune.search import candidate_of
from tvm_na.tune.session import trace_at_point
from tvm_na.tune.tasks import formulations_of
from tvm_na.tune.trial_log import trials_in
from tvm_na.tune.verify import verify

CPU, GPU = detect_target(), parse_target("cuda-sm_90")
ATTENTION = NAProblem.make((7, 6), 3, 1, 4, bias=True)
HALVES: dict[str, Any] = {"dtype": "float16"}
SHARED: dict[str, Any] = {"heads_kv": 2, "head_dim_v": 16, "dtype": "float64"}


@dataclass(frozen=True)
class Tuned:
    """A problem that was tuned, another that its best record fits too, and the name of their space."""

    problem: Problem
    near: Problem
    space: str
    target: NATarget = CPU
    batch: int = 1
    seed: int = 0  # one that draws a point that a GPU can launch
    folder: Path = field(default_factory=Path)

    @property
    def records(self) -> list[Record]:
        return [record for record in records_in(self.folder) if record.problem == self.problem]


def backward(heads: int, **options: Any) -> BackwardProblem:
    return BackwardProblem(NAProblem.make((7, 6), 3, heads, 16, bias=True, **options))


def unfused(kind: str, heads: int) -> UnfusedProblem:
    return UnfusedProblem.make(kind, (8, 9), 3, heads, 16, bias=kind == "qk", **HALVES)


LINEAR = DenseProblem.make(49, 32, 48, activation="gelu")
CONV = DenseProblem.make((10, 10), 8, 16, kernel_size=3, stride=2, padding=1, bias=False)
HALF = backward(2, return_lse=True, **HALVES)
PLAIN = NAProblem.make((8, 8), 3, 2, 16, bias=True)
LINE = NAProblem.make(40, 9, 2, 16, **HALVES)
GIVEN = {
    "attention on a GPU": Tuned(PLAIN, replace(PLAIN, heads=4, heads_kv=4), "cuda-gather", GPU, GPU_BATCH),
    "one pass on a GPU": Tuned(LINE, replace(LINE, spatial=(60,)), "cuda-flash", GPU, GPU_BATCH),
    "backward": Tuned(backward(1), backward(2), "cpu-backward"),
    "linear": Tuned(LINEAR, replace(LINEAR, out_channels=96), "cpu-dense", batch=3),
    "convolution": Tuned(CONV, replace(CONV, out_channels=32), "cpu-dense"),
    "backward on a GPU": Tuned(HALF, backward(4, return_lse=True, **HALVES), "cuda-flash-backward", GPU, GPU_BATCH, 2),
    "qk on a GPU": Tuned(unfused("qk", 2), unfused("qk", 4), "cuda-unfused", GPU, GPU_BATCH),
    "bias_parts on a GPU": Tuned(unfused("bias_parts", 2), unfused("bias_parts", 4), "cuda-unfused", GPU, GPU_BATCH),
}


def tune(tuned: Tuned, trials: int) -> Any:
    devices = None if tuned.target is CPU else pretended()
    batch = tuned.batch if tuned.target is CPU else 0
    how: dict[str, Any] = {"candidates": 2, "only_default_formulation": True, "jobs": 2, "seed": tuned.seed}
    if tuned.target is CPU:
        how["threads"] = 1
    return run(tuned.problem, tuned.target, output=tuned.folder, devices=devices, trials=trials, batch=batch, **how)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=needs_compiler if given.target is GPU else ()) for name, given in GIVEN.items()],
)
def tuned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tuned:
    """After two trials, in a folder with a record of attention."""
    given = GIVEN[request.param]
    found = replace(given, folder=tmp_path_factory.mktemp("records") / given.target.name)
    tune(found, 2)
    if found.target is CPU:
        commit_drawn(found.folder, ATTENTION)
    return found


@pytest.fixture
def best(tuned: Tuned, monkeypatch: pytest.MonkeyPatch) -> Record:
    """The best record, which is the user's."""
    monkeypatch.setenv("TVM_NA_RECORDS_DIR", str(tuned.folder.parent))
    monkeypatch.setenv("TVM_NA_NUM_THREADS", "1")
    return min(tuned.records, key=lambda record: record.seconds)


def test_every_candidate_is_measured(tuned: Tuned) -> None:
    trials, records = trials_in(tuned.folder), tuned.records
    assert [(t.problem, t.failure, t.batch) for t in trials] == [(tuned.problem.to_json(), None, tuned.batch)] * 2
    assert len({t.point for t in trials}) == len(records) == 2
    assert [record.seconds for record in records] == [trial.seconds for trial in trials]
    for record in records:
        point = point_of(record, tuned.target)
        assert point.formulation == record.formulation and point.parameters
        assert change_since(record) is None
        assert f"sketch: {point.sketch}" in describe(record.formulation, point.sketch, point.parameters)


def test_records_have_the_batch_in_all_arguments(tuned: Tuned) -> None:
    record = tuned.records[0]
    assert (record.batch, record.threads) == (tuned.batch, 1)
    lines = (tuned.folder / "database_tuning_record.json").read_text().splitlines()
    shapes = [shape for _, _, shape in json.loads(lines[record.line - 1])[1][3]]
    case = case_of(tuned.problem, tuned.batch, record.formulation)
    wanted = [list(t.shape) for t in (*case.inputs, *case.outputs())]
    if tuned.space == "cuda-flash-backward":
        assert isinstance(tuned.problem, BackwardProblem)
        wanted += [list(argument.shape_for(tuned.batch)) for argument in tuned.problem.scratch()]
    assert shapes == wanted


def test_the_same_command_knows_what_was_measured(tuned: Tuned) -> None:
    again = tune(tuned, 1)
    assert (again.state.measured, again.state.trials) == (0, 2)
    assert again.state.problems[0].best == min(record.seconds for record in tuned.records)


def test_the_best_record_is_what_is_built(tuned: Tuned, best: Record) -> None:
    chosen = select.select(tuned.problem, tuned.target)
    assert chosen.kind == "record" and chosen.record is not None and chosen.record.digest == best.digest
    assert f"{tuned.space}, user's record {best.digest[:8]}" in build.explain(tuned.problem, tuned.target)
    if tuned.target is GPU:
        data = build.compile_for(tuned.problem, GPU).read_bytes()
        assert FATBIN in data or b"\x7fELF" in data[4:]
        assert "batch" in replayed(best, tuned.problem, GPU).script()  # one kernel for every batch
        return
    case = case_of(tuned.problem, 5, best.formulation)
    outputs = case.outputs()
    build.kernel_for(tuned.problem, CPU).function(*case.inputs, *outputs)
    case.check(outputs, budget_of(tuned.problem))
    assert verify(best).failure == ""


def test_a_near_problem_gets_it_too(tuned: Tuned, best: Record) -> None:
    chosen = select.select(tuned.near, tuned.target)
    assert chosen.kind == "nearest" and chosen.record is not None and chosen.record.problem == tuned.problem
    module, space = build.scheduled_module(tuned.near, tuned.target, chosen)
    assert space.name == tuned.space
    assert module["main"].attrs["tvm_na.formulation"] == chosen.record.formulation
    if isinstance(tuned.near, BackwardProblem):
        assert BackwardProblem.from_json(str(module["main"].attrs["tvm_na.problem"])) == tuned.near


def test_records_are_shown_and_measured_again(tuned: Tuned, best: Record) -> None:
    for command in ("ls", "best"):
        said = invoke("records", command, tuned.folder).output
        assert str(tuned.problem) in said and "no longer applies" not in said
    tasks = {task.problem: task for task in load(tuned.folder).tasks}
    assert tasks[tuned.problem].default and tasks[tuned.problem].gain
    if tuned.target is CPU:
        assert tasks.keys() == {tuned.problem, ATTENTION}
        outcomes = list(remeasure(tuned.folder, 1, 3))
        assert {outcome.problem for outcome in outcomes} == {tuned.problem, ATTENTION}
        assert all(outcome.records and not outcome.failures for outcome in outcomes)


def test_a_mutated_point_is_recorded_as_its_space_schedules_it() -> None:
    """A parameter's value may decide which instructions there are; a mutated trace has those of another value."""
    import tvm
    from tvm import s_tir

    (formulation,) = formulations_of(unfused("qk", 2), GPU)[:1]
    default, slot = formulation.default, cast(Any, SimpleNamespace(formulation=formulation))
    differ = 0
    for number, parameter in enumerate(default.parameters):
        for value in parameter.options:
            schedule = s_tir.Schedule(tvm.IRModule({"main": formulation.func}))
            changed = with_changes(default.schedule.trace, {number: (value, parameter.options)})
            changed.apply_to_schedule(schedule, remove_postproc=False)
            candidate = candidate_of(slot, schedule)
            plan = Plan(candidate.sketch, exact=candidate.parameters)
            own = formulation.space.apply(formulation.func, GPU, plan)
            assert own is not None and candidate.parameters[parameter.name] == value
            wanted = read_trace(trace_as_json(own.schedule.trace))
            assert read_trace(trace_as_json(trace_at_point(candidate, GPU))).difference(wanted) is None
            differ += read_trace(trace_as_json(schedule.trace)).difference(wanted) is not None
    assert differ


@pytest.mark.parametrize(
    ("problem", "most"),
    [(BackwardProblem.make((256, 256), 7, 2, 64), 85), (DenseProblem.make(2**20, 64, 64), 31)],
    ids=str,
)
def test_the_batch_must_fit(problem: Problem, most: int) -> None:
    assert [batch_for(problem, CPU, batch, None, None) for batch in (0, 1, most)] == [1, 1, most]
    with pytest.raises(ValueError, match=f"batch: required at most {most} .* for {problem}, got {most + 1}"):
        batch_for(problem, CPU, most + 1, None, None)
    if isinstance(problem, BackwardProblem):
        assert bytes_needed(problem, 4) > bytes_needed(problem.forward, 4)


@pytest.mark.parametrize(
    ("problem", "elements"),
    [
        (LINEAR, 49 * 32 + 32 * 48 + 48 + 49 * 48),
        # Query, key, value and output.
        (NAProblem.make((4, 5), 3, 6, 8, **SHARED), 20 * (6 * 8 + 2 * 8 + 2 * 16 + 6 * 16)),
        # Query, key, value, the output's gradient, lse and bias are read, three gradients and that of the bias written.
        (BackwardProblem.make((7, 6), 3, 1, 4, bias=True), 7 * 6 * (7 * 4 + 1) + 2 * 5 * 5),
        (BackwardProblem.make((4, 5), 3, 6, 8, **SHARED), 20 * (2 * 6 * 8 + 6 * 16 + 2 * 2 * (8 + 16) + 6)),
    ],
    ids=str,
)
def test_bytes_count_each_tensor_once(problem: Problem, elements: int) -> None:
    assert problem.bytes == elements * (8 if problem.dtype == "float64" else 4)


def test_records_of_one_operator_serve_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_NA_NUM_THREADS", "1")
    monkeypatch.setattr(select, "user_folder", lambda name: tmp_path)
    gradients, linear = BackwardProblem(ATTENTION), replace(LINEAR, out_channels=96)
    problems = (ATTENTION, gradients, LINEAR)
    for one, other in itertools.product(problems, problems):
        assert (one.distance(other) is None) == (one is not other)
    assert unfused("av", 2).distance(unfused("qk", 2)) is None
    assert unfused("av", 2).distance(unfused("av", 4)) is not None
    wider = replace(ATTENTION, heads=2, heads_kv=2)
    assert gradients.distance(BackwardProblem(wider)) == ATTENTION.distance(wider) == 1.0
    commit_drawn(tmp_path, ATTENTION)
    assert [select.select(problem, CPU).kind for problem in (gradients, linear)] == ["default"] * 2
    offered = {f.text for f in formulations_of(linear, CPU)}
    commit_drawn(tmp_path, LINEAR, formulation=[f.text in offered for f in formulations_of(LINEAR, CPU)].index(True))
    for problem, known in ((linear, LINEAR), (replace(ATTENTION, return_lse=True), ATTENTION)):
        found = select.select(problem, CPU)
        assert found.kind == "nearest" and found.record is not None and found.record.problem == known
    chosen = select.select(linear, CPU)
    module, _ = build.scheduled_module(linear, CPU, chosen)
    assert chosen.record is not None and tile_of(module["main"]).to_json() == chosen.record.formulation


def test_an_rpc_session_measures_gradients() -> None:
    """In this process: the session that servers have, without the server."""
    problem, conditions = BackwardProblem(ATTENTION), Conditions(1, repeats=4, budget=0.01)
    file = build.kernel_for(problem, CPU, records="off").file
    for batch in (2, 5):
        found = rpc.measured_in(LocalSession(), Kernel(file, problem, batch=batch), conditions)
        assert found.failure is None and len(found.run_secs) >= 4


def test_other_targets_have_their_own_tiles() -> None:
    for name, vector in (("llvm-x86-avx512", 16), ("llvm-x86-sse4", 4), ("llvm-aarch64-neon", 4)):
        found = formulations_of(CONV, parse_target(name))
        assert {json.loads(f.text)["vector"] for f in found} == {vector}


def test_operators_have_formulations_of_their_own() -> None:
    for given in GIVEN.values():
        assert {f.space.name for f in formulations_of(given.problem, given.target)} == {given.space}
    with pytest.raises(ValueError, match="problem: required one that has a compiled kernel on cuda-sm_90, got bias_su"):
        formulations_of(UnfusedProblem.make("bias_sums", (8, 9), 3, 2, 16), GPU)
