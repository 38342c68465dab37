"""Kernels as WebAssembly in wasmtime: their numbers, their modules, and what goes wrong."""

from __future__ import annotations

import functools
import importlib.util
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import GRADIENT_TOLERANCE, TOLERANCE
from tests.helpers import PROBLEMS, random_problem, share
from tvm_na.jit import build
from tvm_na.measure import local
from tvm_na.measure.devices import LocalDevice
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.problems.base import Problem
from tvm_na.problems.dense import DenseProblem
from tvm_na.problems.unfused import UnfusedProblem
from tvm_na.records.read import records_in
from tvm_na.reference.cases import make_case
from tvm_na.targets.target import NATarget, parse_target
from tvm_na.te import ENTRY
from tvm_na.tune.options import TuneOptions
from tvm_na.tune.run import tune
from tvm_na.tune.tasks import TuneTask
from tvm_na.wasm import link, machine
from tvm_na.wasm.kernel import Kernel

pytest.importorskip("ziglang", reason="test_wasm links with ziglang: pip install 'tvm_na[wasm]'")
wasmtime = pytest.importorskip("wasmtime", reason="test_wasm runs in wasmtime: pip install 'tvm_na[wasm]'")

WASM, RELAXED = parse_target("llvm-wasm32"), parse_target("llvm-wasm32-relaxed")
SMALL = NAProblem.make((6, 7), 3, 1, 4, return_lse=True)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The module of ``SMALL``."""
    file = tmp_path_factory.mktemp("wasm") / "small.wasm"
    build.compiled(build.scheduled_module(SMALL, WASM)[0], WASM)(file)
    return file


def check(problem: Problem, folder: Path, target: NATarget = WASM, batch: int = 2) -> None:
    """Build a problem's kernel, run it on random inputs into NaN, and compare with the reference in float64."""
    module, _ = build.scheduled_module(problem, target)
    build.compiled(module, target)(folder / "kernel.wasm")
    case = make_case(problem, batch, "cpu", str(module[ENTRY].attrs["tvm_na.formulation"]))
    outputs = case.outputs()
    Kernel(folder / "kernel.wasm", ENTRY)(*case.inputs, *outputs)
    is_sum_of_sums = isinstance(problem, (BackwardProblem, UnfusedProblem))
    case.check(outputs, (GRADIENT_TOLERANCE if is_sum_of_sums else TOLERANCE)[problem.dtype])


@pytest.mark.parametrize("seed", range(share(4)))
def test_random_problems(seed: int, tmp_path: Path) -> None:
    """Every fourth in float64, every other one in relaxed SIMD."""
    rng = random.Random(seed)
    dtype = "float64" if seed % 4 == 3 else "float32"
    problem = random_problem(rng, rank=rng.choice([1, 2, 2, 2, 3]), sizes=(5, 20), dtype=dtype)
    check(problem, tmp_path, RELAXED if seed % 2 else WASM)


@pytest.mark.parametrize(
    "problem",
    [
        DenseProblem.make((9, 8), 3, 20, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), activation="gelu"),
        DenseProblem.make(11, 24, 20, residual=True),
        BackwardProblem.make((6, 7), 3, 2, 12, dilation=2, bias=True, return_lse=True),
        UnfusedProblem.make("qk", (6, 7), 3, 2, 12, bias=True),
        NAProblem.make((6, 7), 3, 2, 12, dtype="float16", return_lse=True),
        NAProblem.make((6, 7), 3, 2, 12, dtype="bfloat16", bias=True),
    ],
    ids=str,
)
def test_every_kind_of_kernel(problem: Problem, tmp_path: Path) -> None:
    check(problem, tmp_path)


def test_a_module_imports_a_memory_alone(small: Path) -> None:
    imports = wasmtime.Module.from_file(wasmtime.Engine(), str(small)).imports
    assert [(found.module, found.name) for found in imports] == [("env", "memory")]
    assert imports[0].type.limits.min == link.pages_of(small)
    assert b"\xfd" in small.read_bytes()  # instructions on vectors


def _logarithms(x: Any) -> Any:
    from tvm import te, tirx

    return te.compute(x.shape, lambda i: tirx.log2(x[i]))


def test_a_logarithm_of_our_own(tmp_path: Path) -> None:
    """log2 of every kind of number, beside NumPy's."""
    import tvm
    from tvm import te

    from tvm_na.jit.library import write_library

    rng = np.random.default_rng(0)
    for dtype, limit in (("float32", 6e-8), ("float64", 1e-15)):
        info = np.finfo(dtype)
        edges = [0, -0.0, 1, 2, 0.5, np.inf, np.nan, -1, info.max, info.tiny, info.smallest_subnormal, 1 - info.eps]
        x = np.concatenate([edges, np.exp(rng.uniform(-80, 80, 500)), rng.uniform(0.9, 1.1, 500)]).astype(dtype)
        given = te.placeholder(x.shape, dtype)
        func = te.create_prim_func([given, _logarithms(given)])
        module = tvm.IRModule({ENTRY: func.with_attr("global_symbol", ENTRY)})
        executable = tvm.compile(module, target=WASM.tvm_target())
        write_library(executable.mod, tmp_path / "log2.wasm", functools.partial(link.link, [ENTRY], False))
        out = np.full_like(x, 7)
        Kernel(tmp_path / "log2.wasm", ENTRY)(x, out)
        with np.errstate(all="ignore"):
            right = np.log2(x.astype(np.float64))
        finite = np.isfinite(right)
        np.testing.assert_array_equal(out[~finite], right[~finite])
        assert np.all(np.abs(out[finite] - right[finite]) <= limit * np.abs(right[finite]))


# --- what goes wrong


def tensors(batch: int = 1) -> list[torch.Tensor]:
    case = make_case(SMALL, batch, "cpu")
    return [*case.inputs, *case.outputs()]


def test_wrong_arguments_are_refused_by_the_kernel(small: Path) -> None:
    query, *others = tensors()
    for wrong in (query[:, :5].contiguous(), query.double(), query[0]):
        with pytest.raises(RuntimeError, match=f"{ENTRY}: \\w+Error: .*query"):
            Kernel(small, ENTRY)(wrong, *others)
    Kernel(small, ENTRY)(query, *others)


def test_memory_that_cannot_grow_is_an_error(small: Path) -> None:
    kernel = Kernel(small, ENTRY, most_pages=link.pages_of(small) + 1)
    with pytest.raises(RuntimeError, match=r"memory: required \d+ bytes more than the \d+ that there are, got none"):
        kernel(*tensors(batch=400))
    with pytest.raises(RuntimeError, match=f"memory: required {2**40} bytes more than"):
        kernel._machine.alloc(2**40)
    one = tensors()
    kernel(*one)  # it is as usable as before
    assert torch.isfinite(one[-1]).all()


def test_memory_is_given_back(small: Path) -> None:
    kernel, given = Kernel(small, ENTRY), tensors(batch=20)
    kernel(*given)
    before = kernel._machine.size
    for _ in range(20):
        kernel(*given)
    assert kernel._machine.size == before


def test_a_file_that_is_no_module(tmp_path: Path) -> None:
    (tmp_path / "x.wasm").write_bytes(b"\0asm\1\0\0\0damaged")
    with pytest.raises(RuntimeError, match="x.wasm: required a module that wasmtime can load, got "):
        machine.Machine(tmp_path / "x.wasm")


def test_what_cannot_be_linked(tmp_path: Path) -> None:
    (tmp_path / "lib.o").write_bytes(b"no object")
    with pytest.raises(RuntimeError, match="the linker failed:\n.*lib"):
        link.link([ENTRY], False, str(tmp_path / "x.wasm"), [tmp_path / "lib.o"])


def test_without_a_linker_and_without_a_host(monkeypatch: pytest.MonkeyPatch, small: Path) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"to link for wasm32: required the package ziglang \(pip install"):
        link.require()
    with pytest.raises(RuntimeError, match=r"to run WebAssembly: required the package wasmtime \(pip install"):
        machine.Machine(small)


def test_it_runs_in_no_process_of_ours() -> None:
    wanted = "target: required one that this CPU can run .*WebAssembly runs in a host.*, got llvm-wasm32"
    with pytest.raises(ValueError, match=wanted):
        build.kernel_for(SMALL, WASM)


# --- as the tuner measures it


def test_kernels_are_checked_and_timed(small: Path) -> None:
    device = LocalDevice.of(RELAXED)
    conditions = device.conditions(local.Conditions(4, budget=0.05))
    assert (device.threads(4), conditions.threads, conditions.on_gpu) == (1, 1, False)
    measured = local.run_kernel(local.Kernel(small, SMALL, reference=small), conditions)
    assert isinstance(measured, local.Measured) and measured.failure is None, measured
    assert len(measured.run_secs) == len(measured.reference_secs) >= 3 and min(measured.run_secs) > 0
    other = NAProblem.make((6, 7), 3, 1, 4, dilation=2, return_lse=True)  # of the same shapes
    wrong = local.run_kernel(local.Kernel(small, other), conditions)
    assert isinstance(wrong, local.Measured) and wrong.failure == "wrong numbers"


@pytest.mark.slow
@pytest.mark.skipif(PROBLEMS < 100, reason="test_tuning takes a minute: set TVM_NA_TEST_PROBLEMS to 100 or more")
def test_tuning(tmp_path: Path) -> None:
    """Records of a few trials, of which the next kernel is made."""
    task = TuneTask(NAProblem.make((9, 9), 3, 1, 8), 1)
    result = tune([task], WASM, TuneOptions(trials=4, jobs=1), output=tmp_path)
    records = records_in(tmp_path)
    assert result.state.measured == 4 and {record.target for record in records} == {WASM.name}
    assert {record.threads for record in records} == {1}
    with pytest.raises(ValueError, match="threads: required 0 or 1 for llvm-wasm32, got 2"):
        tune([task], WASM, TuneOptions(trials=4, jobs=1, threads=2), output=tmp_path)
