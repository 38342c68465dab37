"""Tuning for a GPU: candidates are built for real, rejected where no GPU can launch them; where there is none, times
are invented."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cuda.test_limits import needs_compiler
from tests.helpers import run_python
from tests.tune.runs import FakeDevice, run
from tvm_na.cuda import toolchain
from tvm_na.jit import build
from tvm_na.jit.library import write_cuda_library
from tvm_na.measure.devices import LocalDevice
from tvm_na.measure.local import Conditions, Kernel, LocalMeasurer, Measured
from tvm_na.problems.attention import NAProblem
from tvm_na.records import select
from tvm_na.records.meta import read_meta
from tvm_na.records.read import records_in
from tvm_na.records.write import TuningDatabase, trace_as_json
from tvm_na.targets import cuda_arch as arch
from tvm_na.targets.target import NATarget, parse_target
from tvm_na.tune.builder import REJECTIONS
from tvm_na.tune.options import GPU_BATCH, batch_for, bytes_needed
from tvm_na.tune.run import TuneResult
from tvm_na.tune.tasks import formulations_of
from tvm_na.tune.trial_log import trials_in

PROBLEM = NAProblem.make((8, 8), 3, 2, 16, bias=True)
SM_80, SM_90 = parse_target("cuda-sm_80"), parse_target("cuda-sm_90")
_TRIALS = 9
FATBIN = struct.pack("<I", 0xBA55ED50)


def seconds_of_the_code(kernel: Kernel) -> Measured:
    """Seconds that are made of what was compiled."""
    data = kernel.file.read_bytes()
    assert FATBIN in data or b"\x7fELF" in data[4:]
    drawn = hashlib.sha256(data).digest()[0] / 256
    return Measured((1e-3 * (1 + drawn),), reference_secs=(1e-3,) if kernel.reference else ())


def pretended(**about: Any) -> FakeDevice:
    """A GPU on which the time of a kernel depends on its code alone."""
    return FakeDevice(seconds_of_the_code, **about)


def with_little_shared_memory(target: NATarget) -> NATarget:
    """The target of a GPU on which the default kernel fits, but the default of another formulation does not."""
    from tvm_na.cuda.library import generated

    sizes = [generated(f.default.schedule.mod, target)[1] for f in formulations_of(PROBLEM, target)]
    shared = [size.static_shared + size.dynamic_shared for size in sizes]
    assert shared[0] < max(shared)
    return dataclasses.replace(target, max_shared_bytes=max(shared) - 1)


@pytest.fixture(scope="module")
def device() -> FakeDevice:
    return pretended()


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory, device: FakeDevice) -> TuneResult:
    try:
        toolchain.find_compiler()
    except RuntimeError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("records") / SM_80.name
    target = with_little_shared_memory(SM_80)
    return run(PROBLEM, target, trials=_TRIALS, output=folder, devices=device, candidates=3)


def test_every_candidate_is_measured_or_rejected_with_a_reason(tuned: TuneResult, device: FakeDevice) -> None:
    trials = trials_in(tuned.folder)
    assert len(trials) == tuned.state.measured == _TRIALS
    rejected = [t for t in trials if t.failure is not None]
    assert {t.failure for t in rejected} == {"too much shared memory"} <= set(REJECTIONS)
    for trial in rejected:
        assert trial.seconds is None and trial.reason.startswith("shared memory: required at most ")
    assert all(t.reason == "" for t in trials if t.failure is None)
    assert {(t.threads, t.batch) for t in trials} == {(1, GPU_BATCH)}
    assert tuned.state.problems[0].failures["too much shared memory"] == len(rejected)
    assert "too much shared memory: " in (tuned.folder / "tune.log").read_text()
    # The reference alone, then each interleaved with it.
    assert len(device.kernels) == 1 + _TRIALS - len(rejected)
    assert {k.batch for k in device.kernels} == {GPU_BATCH}
    assert {k.reference for k in device.kernels[1:]} == {device.kernels[0].file}
    assert device.conditions is not None and device.conditions.threads == 1


def test_records_say_the_batch_and_the_gpu(tuned: TuneResult) -> None:
    records, trials = records_in(tuned.folder), trials_in(tuned.folder)
    assert [r.seconds for r in records] == [t.seconds for t in trials if t.failure is None]
    assert {(r.target, r.threads, r.batch, r.problem) for r in records} == {("cuda-sm_80", 1, GPU_BATCH, PROBLEM)}
    assert records[0].seconds_per_sample == records[0].seconds / GPU_BATCH
    meta = read_meta(tuned.folder)
    assert meta is not None and meta.sessions[0]["gpu"] == "NVIDIA Pretended"
    assert "batch" not in meta.sessions[0]  # which meant something else, once


def test_the_best_record_is_what_is_built_and_told(
    tuned: TuneResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TVM_NA_RECORDS_DIR", str(tuned.folder.parent))
    monkeypatch.setenv("TVM_NA_CACHE_DIR", str(tmp_path))
    best = min(records_in(tuned.folder), key=lambda r: r.seconds)
    assert f"{best.seconds * 1e3:.3g} ms with a batch of {GPU_BATCH}" in select.select(PROBLEM, SM_80).reason
    build.compile_for(PROBLEM, SM_80)
    assert build.is_cached(PROBLEM, SM_80)
    said = build.explain(PROBLEM, SM_80)
    assert f"a batch of {GPU_BATCH}" in said and "kernel on disk" in said
    assert select.select(PROBLEM, SM_90).kind == "default"
    near = NAProblem.make((8, 8), 3, 4, 16, bias=True)
    assert build.compile_for(near, SM_80).is_file()


def test_the_same_command_continues_with_the_same_batch(tuned: TuneResult) -> None:
    before = trials_in(tuned.folder)
    target, device = with_little_shared_memory(SM_80), pretended(free=bytes_needed(PROBLEM, GPU_BATCH))
    options: dict[str, Any] = {"output": tuned.folder, "candidates": 3}
    more = run(PROBLEM, target, trials=len(before) + 2, devices=device, seed=1, **options)
    after = trials_in(tuned.folder)
    assert (more.state.measured, len(after)) == (2, len(before) + 2)
    assert {t.batch for t in after} == {GPU_BATCH}  # although anew it would have been a quarter
    assert len({t.point for t in after}) == len(after)
    assert len({t.reference for t in after}) == 1
    other = run(PROBLEM, target, trials=1, devices=pretended(), batch=2, **options)
    assert other.state.measured == 1  # with another batch everything is new
    assert trials_in(tuned.folder)[-1].batch == 2
    best = min((r for r in records_in(tuned.folder) if r.batch == 2), key=lambda r: r.seconds)
    assert min(records_in(tuned.folder), key=lambda r: r.seconds_per_sample).batch == GPU_BATCH != best.batch


@needs_compiler
def test_a_gpu_that_is_not_idle_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tvm_na.tune.run._open", lambda *_: pytest.fail("went on"))
    device = pretended(busy="used by another (process 7)")
    with pytest.raises(pytest.fail.Exception):
        run(PROBLEM, SM_80, output=tmp_path, devices=device)
    (warning,) = [m for m in caplog.messages if "GPU" in m]
    assert warning.endswith("got one that is not idle, used by another (process 7)")


REPLAYED = """
    import sys
    from pathlib import Path
    from tvm_na.records import replay
    from tvm_na.records.read import records_in
    from tvm_na.targets.target import parse_target

    (record,) = records_in(Path(sys.argv[1]))
    print("mma" in replay.replayed(record, record.problem, parse_target(record.target)).script())
    print(replay.point_of(record, parse_target(record.target)).sketch)
"""


def test_records_with_tensor_instructions_are_read_in_any_process(tmp_path: Path) -> None:
    """A trace has layouts, which TVM does not write, and names of instructions, which a process must know."""
    import tvm

    problem = NAProblem.make((14, 14), 7, 8, 32, bias=True, dtype="float16")
    formulation = next(f for f in formulations_of(problem, SM_80) if f.space.name == "cuda-band")
    trace = formulation.default.schedule.trace
    assert {"Tensorize", "TransformLayout"} <= {inst.kind.name for inst in trace.insts}
    with TuningDatabase(tmp_path, SM_80) as database:
        workload = database.register(tvm.IRModule({"main": formulation.func}))
        database.commit(workload, trace, [1e-3], 1, batch=64)
    assert run_python(REPLAYED, str(tmp_path)).splitlines() == ["True", formulation.default.sketch]


def test_traces_are_written_as_tvm_writes_them() -> None:
    from tvm.s_tir.meta_schedule.database import TuningRecord, Workload

    default = formulations_of(PROBLEM, SM_80)[0].default.schedule
    assert trace_as_json(default.trace) == TuningRecord(default.trace, Workload(default.mod)).as_json()[0]


# --- what is refused, before anything is built


def test_a_gpu_of_another_kind_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arch, "devices", lambda: [(8, 0), (12, 0)])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with pytest.raises(ValueError, match="kernels for cuda-sm_90, .* got GPUs of compute capability 8.0, 12.0"):
        LocalDevice.of(SM_90)
    assert [LocalDevice.of(parse_target(f"cuda-sm_{n}")).device for n in (80, 120)] == ["cuda:0", "cuda:1"]


def test_threads_are_no_matter_of_gpus(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="threads: required 0 or 1 for cuda-sm_80, got 4"):
        run(PROBLEM, SM_80, threads=4, output=tmp_path / "out", devices=pretended())
    assert not (tmp_path / "out").exists()


@needs_compiler
def test_a_batch_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    device = pretended(free=10**6)
    with pytest.raises(ValueError, match="batch: required one that fits into the GPU's 1000000 free bytes, got 4096"):
        run(PROBLEM, SM_80, batch=4096, output=tmp_path / "out", devices=device)
    assert not (tmp_path / "out").exists()


# --- the batch


def test_the_batch_fills_a_gpu_and_a_quarter_of_its_memory_at_most() -> None:
    on_cpu = parse_target("llvm-x86-avx2")
    assert batch_for(PROBLEM, on_cpu, 0, None, None) == 1
    assert batch_for(PROBLEM, on_cpu, 3, None, None) == 3
    assert batch_for(PROBLEM, SM_90, 0, None, None) == GPU_BATCH
    assert batch_for(PROBLEM, SM_90, 5, 64, None) == 5
    for batch in (64, 8, 1):
        assert batch_for(PROBLEM, SM_90, 0, None, 4 * bytes_needed(PROBLEM, batch)) == batch
    assert batch_for(PROBLEM, SM_90, 0, None, 1) == 1
    assert batch_for(PROBLEM, SM_90, 0, 64, bytes_needed(PROBLEM, 64)) == 64
    assert batch_for(PROBLEM, SM_90, 0, 64, bytes_needed(PROBLEM, 64) - 1) < 64
    large = NAProblem.make((2048, 2048), 3, 4, 32)
    assert batch_for(large, SM_90, 0, None, None) == 1
    with pytest.raises(ValueError, match="batch: required at most 1 .*32 bits.*, got 2"):
        batch_for(large, SM_90, 2, None, None)


def test_conditions_on_a_gpu() -> None:
    conditions = LocalDevice("cuda:1").conditions(Conditions(8, cold_cache=True))
    assert (conditions.threads, conditions.device, conditions.cold_cache) == (1, "cuda:1", True)
    assert conditions.on_gpu and not Conditions(8).on_gpu
    assert LocalDevice("cpu").conditions(Conditions(8)) == Conditions(8)


# --- a real GPU


@pytest.mark.gpu
def test_gpu_is_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = parse_target("cuda")
    result = run(PROBLEM, target, trials=8, output=tmp_path / target.name, candidates=4)
    records = records_in(result.folder)
    assert result.state.measured == 8 and records
    assert all(0 < seconds < 1e-2 for r in records for seconds in r.run_secs)
    assert {(r.threads, r.batch) for r in records} == {(1, GPU_BATCH)}
    assert all(t.reference is not None for t in trials_in(result.folder))
    monkeypatch.setenv("TVM_NA_RECORDS_DIR", str(tmp_path))
    assert select.select(PROBLEM, target).kind == "record"


def reads_far_beyond(problem: NAProblem) -> Any:
    """A scheduled module with the arguments of a kernel of ``problem`` that reads 4 GiB behind the query."""
    import tvm
    from tvm import s_tir, te

    from tvm_na.te.common.operands import Operands

    given = Operands.of(problem)
    shape = (given.batch, *problem.spatial, problem.heads, problem.head_dim_v)
    out = te.compute(shape, lambda b, y, x, h, c: given.query[b, y + 2**22, x, h, c], name="out")
    sch = s_tir.Schedule(tvm.IRModule({"main": given.prim_func(problem, [out], "{}")}))
    sample, *rest = sch.get_loops(sch.get_sblock("out"))
    blocks, threads = sch.split(sch.fuse(*rest), [None, 128])
    sch.bind(sch.fuse(sample, blocks), "blockIdx.x")
    sch.bind(threads, "threadIdx.x")
    return sch.mod


@needs_compiler
def test_the_kernel_of_the_next_test_is_what_it_is_meant_to_be() -> None:
    from tvm_na.cuda.library import compile_library

    elements = 8 * 2 * 16 * 2**22
    assert f"{elements}" in compile_library(reads_far_beyond(PROBLEM), SM_90).source


@pytest.mark.gpu
def test_gpu_errors_cost_a_process_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tvm_na.cuda.library import compile_library

    monkeypatch.setenv("TVM_NA_CACHE_DIR", str(tmp_path))
    target = parse_target("cuda")
    right, illegal = build.compile_for(PROBLEM, target, records="off"), tmp_path / "illegal.so"
    write_cuda_library(compile_library(reads_far_beyond(PROBLEM), target), illegal)
    measurer = LocalMeasurer(LocalDevice.of(target).conditions(Conditions(1)), tmp_path / "log")
    found: dict[int, Measured] = {}
    try:
        measurer.measure([Kernel(f, PROBLEM, right, 64) for f in (right, illegal, right)], found.__setitem__)
    finally:
        measurer.close()
    assert [found[n].failure for n in range(3)] == [None, "crash", None], found
    assert "illegal memory access" in found[1].message
    for n in (0, 2):  # one and the same kernel
        ratios = sorted(a / b for a, b in zip(found[n].run_secs, found[n].reference_secs, strict=True))
        assert 0.8 < ratios[len(ratios) // 2] < 1.25
