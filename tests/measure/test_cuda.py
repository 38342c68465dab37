"""How kernels on a GPU are timed, without one: pretended events, kernels on the CPU, errors that spoil a process."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.measure.test_local import measured
from tvm_na.measure import clocks, timing
from tvm_na.measure import cuda as measure_cuda
from tvm_na.measure import local as measure
from tvm_na.measure.clocks import CpuClock, CudaClock, GraphClock, clock_of
from tvm_na.measure.cuda import Sets, copies_for, rotating, sets_of
from tvm_na.measure.idle import why_busy
from tvm_na.measure.local import Conditions, Kernel, LocalMeasurer, Measured, repeats_of, run_kernel
from tvm_na.measure.worker_pool import Last
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.problems.unfused import UnfusedProblem
from tvm_na.reference import attention as reference
from tvm_na.reference.case import WrongNumbers
from tvm_na.reference.cases import make_case

PROBLEM = NAProblem.make((6, 7), 3, 2, 8, bias=True, return_lse=True)
ON_GPU = Conditions(1, repeats=5, device="cuda:0")


# --- the clock


class PretendedGpu:
    """A GPU that does what it is given one after the other, while the host goes on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.host, self.free, self.did = 0.0, 0.0, ""
        patch.setattr(torch.cuda, "Event", lambda enable_timing: Event(self))
        patch.setattr(torch.cuda, "_sleep", lambda cycles: self.launch("z", cycles / 2e9))
        self.captured: list[tuple[str, float]] | None = None
        patch.setattr(torch.cuda, "CUDAGraph", lambda: Graph(self))
        patch.setattr(torch.cuda, "graph", lambda graph: graph)

    def launch(self, name: str, seconds: float, host: float = 4e-6) -> None:
        """The host takes 4 microseconds to launch what takes the GPU ``seconds``; into a graph, if one is captured."""
        if self.captured is not None:
            self.captured.append((name, seconds))
            return
        self.host += host
        self.free = max(self.free, self.host) + seconds
        self.did += name


class Graph:
    def __init__(self, gpu: PretendedGpu) -> None:
        self.gpu, self.launched = gpu, list[tuple[str, float]]()

    def __enter__(self) -> None:
        self.gpu.captured = self.launched

    def __exit__(self, *_: object) -> None:
        self.gpu.captured = None

    def replay(self) -> None:
        self.gpu.launch("".join(name for name, _ in self.launched), sum(seconds for _, seconds in self.launched))


class Event:
    def __init__(self, gpu: PretendedGpu) -> None:
        self.gpu, self.at = gpu, 0.0

    def record(self) -> None:
        self.at = max(self.gpu.free, self.gpu.host)

    def synchronize(self) -> None:
        self.gpu.host = max(self.gpu.host, self.at)

    def elapsed_time(self, end: Event) -> float:
        assert self.gpu.host >= end.at, "not waited for"
        return (end.at - self.at) * 1e3


@pytest.mark.parametrize("seconds", [1e-6, 50e-6])
def test_a_kernel_is_timed_by_the_gpu_however_short_it_is(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Launching takes longer than the shorter one."""
    gpu = PretendedGpu(monkeypatch)
    found = CudaClock().seconds(lambda: gpu.launch("a", seconds), 20)
    assert found == pytest.approx(seconds)
    assert gpu.did == "z" + "a" * 20


def test_what_the_host_takes_for_a_call_is_in_nobodys_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """30 microseconds are as good as 4. All calls that rotate are in a graph, even when one is asked for."""
    gpu = PretendedGpu(monkeypatch)
    quick = rotating(lambda n: gpu.launch(n, 2e-6), [*"abc"])
    slow = rotating(lambda n: gpu.launch(n, 2e-6, 30e-6), [*"abc"])
    assert CudaClock().seconds(slow, 20) > 10e-6
    gpu.did = ""
    found = timing.measure({"quick": quick, "slow": slow}, rounds=3, sample_time=2e-5, clock=GraphClock(3))
    assert [t for timed in found.values() for t in timed.samples] == pytest.approx([2e-6] * 6)
    replays = [set(gpu.did[at + 1 : at + 4]) for at, did in enumerate(gpu.did) if did == "z"]
    assert all(names == {*"abc"} for names in replays)


def test_kernels_are_interleaved_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = PretendedGpu(monkeypatch)
    monkeypatch.setattr(clocks, "_filler", lambda *_: SimpleNamespace(add_=lambda n: gpu.launch("f", 1e-4)))
    calls = [lambda: gpu.launch("a", 2e-4), lambda: gpu.launch("b", 1.3e-4)]
    found = repeats_of(calls, ON_GPU, CudaClock())
    assert found[0] == pytest.approx([2e-4] * 5) and found[1] == pytest.approx([1.3e-4] * 5)
    assert gpu.did.replace("z", "") == "aaabbb" + ("a" * 3 + "b" * 4) * 5  # each repeat at least half a millisecond
    gpu.did = ""
    cold = repeats_of(calls, Conditions(1, repeats=3, device="cuda:0", cold_cache=True), CudaClock())
    assert cold[0] == pytest.approx([2e-4] * 3)
    assert gpu.did == "zazaza" + "zbzbzb" + "fzafzb" * 3
    assert isinstance(clock_of(ON_GPU.device), CudaClock) and isinstance(clock_of("cpu"), CpuClock)


# --- arguments


def test_arguments_rotate_through_more_than_the_last_cache() -> None:
    seen: list[int] = []
    call = rotating(lambda a, b: seen.append(a + b), [(1, 0), (2, 10), (3, 20)])
    for _ in range(7):
        call()
    assert seen == [1, 12, 23, 1, 12, 23, 1]
    assert [copies_for(n) for n in (1, 2**20, 2**25, 2**27, 2**40)] == [64, 64, 12, 3, 2]
    assert all(copies_for(n) * n >= clocks.ROTATED_BYTES for n in (2**25, 2**26 + 1, 2**30))


def attention(*arguments: torch.Tensor, right: bool = True) -> None:
    """What a kernel of PROBLEM does, by the reference."""
    query, key, value, scale, rpb, out, lse = arguments
    found = reference.neighborhood_attention(PROBLEM, query, key, value, float(scale), rpb)
    out.copy_(found[0] if right else found[0] * 2)
    lse.copy_(found[1])


def test_a_kernel_is_checked_once_and_then_called_with_one_set_after_the_other() -> None:
    sets = Sets.of(PROBLEM, make_case(PROBLEM, 4, "cpu"))
    seen: list[tuple[int, ...]] = []

    def kernel(*arguments: torch.Tensor) -> None:
        seen.append(tuple(t.data_ptr() for t in arguments))
        attention(*arguments)

    call = sets.checked(kernel, 1e-6)
    assert len(seen) == 1
    for _ in range(len(sets.arguments)):
        call()
    assert seen[0] == seen[1]
    columns = list(zip(*seen[1:], strict=True))
    assert [len(set(column)) for column in columns] == [64, 64, 64, 1, 1, 64, 64]  # scale and rpb are shared
    for arguments in (sets.arguments[0], sets.arguments[-1]):
        sets.case.check(arguments[-2:], 1e-6)
    with pytest.raises(WrongNumbers, match="out"):
        sets.checked(lambda *t: attention(*t, right=False), 1e-6)
    with pytest.raises(WrongNumbers, match="got inf|got nan"):  # what was right before is NaN again
        sets.checked(lambda *t: None, 1e-6)


@pytest.mark.parametrize(
    ("problem", "shared"),
    [
        (UnfusedProblem.make("qk", (8, 9), 3, 2, 16, bias=True), [False, False, True, True, False]),
        (UnfusedProblem.make("bias_parts", (8, 9), 3, 2, 16), [False, False]),
        # query, key, value, scale, rpb, lse, d_out, d_lse; four gradients
        (BackwardProblem(PROBLEM), [False] * 3 + [True] * 2 + [False] * 7),
    ],
    ids=str,
)
def test_what_has_a_batch_rotates(problem: UnfusedProblem | BackwardProblem, shared: list[bool]) -> None:
    """All but a scale and a bias have copies."""
    first, second = Sets.of(problem, make_case(problem, 2, "cpu")).arguments[:2]
    assert [a is b for a, b in zip(first, second, strict=True)] == shared


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Pretends that a GPU is there, on which kernels are Python functions: those that are installed, by file."""
    kernels: dict[str, Callable[..., None]] = {}
    monkeypatch.setattr(measure_cuda, "make_case", lambda problem, batch, device: make_case(problem, batch, "cpu"))
    monkeypatch.setattr("tvm_na.jit.runtime.load", lambda file, entry, kind: kernels[file.name])
    monkeypatch.setattr(measure, "clock_of", lambda device: CpuClock())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    measure_cuda._sets.clear()
    yield kernels.__setitem__
    measure_cuda._sets.clear()


def test_one_set_of_arguments_is_kept_until_a_kernel_goes_wrong(on_cpu: Callable[..., None]) -> None:
    on_cpu("right", attention)
    on_cpu("wrong", lambda *t: attention(*t, right=False))
    right, wrong = (Kernel(Path(name), PROBLEM, batch=2) for name in ("right", "wrong"))
    found = run_kernel(right, ON_GPU)
    assert isinstance(found, Measured) and found.failure is None and len(found.run_secs) >= 5
    kept = sets_of(PROBLEM, 2, "cuda:0")
    assert sets_of(PROBLEM, 2, "cuda:0") is kept
    failed = run_kernel(wrong, ON_GPU)
    assert isinstance(failed, Measured) and failed.failure == "wrong numbers"
    assert sets_of(PROBLEM, 2, "cuda:0") is not kept  # it may have written to those
    sets_of(PROBLEM, 3, "cuda:0")
    assert [key[1] for key in measure_cuda._sets] == [3]


# --- errors


class CudaError(RuntimeError):
    pass


def test_an_error_that_spoils_the_gpu_is_the_last_that_a_process_says(
    on_cpu: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def illegal(*_: torch.Tensor) -> None:
        raise CudaError("CUDA error: an illegal memory access was encountered")

    on_cpu("illegal", illegal)
    kernel = Kernel(Path("illegal"), PROBLEM)
    harmless = run_kernel(kernel, ON_GPU)
    assert isinstance(harmless, Measured) and harmless.failure == "run"
    monkeypatch.setattr(torch.cuda, "synchronize", illegal)
    spoilt = run_kernel(kernel, ON_GPU)
    assert isinstance(spoilt, Last)
    assert spoilt.value.failure == "crash" and "illegal memory access" in spoilt.value.message
    on_cpu_alone = run_kernel(kernel, Conditions(1))
    assert isinstance(on_cpu_alone, Measured) and on_cpu_alone.failure == "run"


def spoils(kernel: Kernel, conditions: Conditions) -> Measured | Last:
    """What a worker does of which one kernel takes the GPU away; in place of ``run_kernel``."""
    if kernel.file.name == "illegal":
        return Last(Measured((), "crash", "CUDA error: an illegal memory access was encountered"))
    if kernel.file.name == "endless":
        while True:
            pass
    return Measured((float(os.getpid()),))


def test_a_process_that_lost_its_gpu_is_replaced_and_measuring_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "run_kernel", spoils)
    files = ["a", "b", "illegal", "c", "endless", "d", "illegal"]
    with closing(LocalMeasurer(Conditions(1, timeout=2.0), tmp_path / "log")) as measurer:
        found = measured(measurer, *(Kernel(Path(name), PROBLEM) for name in files))
        found += measured(measurer, Kernel(Path("e"), PROBLEM))
    assert [m.failure for m in found] == [None, None, "crash", None, "timeout", None, "crash", None]
    assert "illegal memory access" in found[2].message
    first, second, third, fourth = ({found[n].run_secs[0] for n in at} for at in ((0, 1), (3,), (5,), (7,)))
    assert len(first) == 1 and len(first | second | third | fourth) == 4


def no_gpu(threads: int, device: str) -> None:
    raise CudaError(f"no {device}")


def test_a_gpu_that_does_not_work_is_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "prepare", no_gpu)
    refused = pytest.raises(RuntimeError, match="a worker process could not start")
    with closing(LocalMeasurer(ON_GPU, tmp_path / "log")) as measurer, refused:
        measured(measurer, Kernel(Path("a"), PROBLEM))
    assert "no cuda:0" in (tmp_path / "log").read_text()


def test_works_asks_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert measure_cuda.works()

    def fails() -> None:
        raise CudaError

    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    assert not measure_cuda.works()


# --- who else is there


def nvidia_smi(folder: Path, percent: str, processes: str, code: int = 0) -> str:
    program = folder / "nvidia-smi"
    cases = f'case "$1" in *utilization*) printf "{percent}";; *) printf "{processes}";; esac; exit {code}'
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n{cases}\n', encoding="utf-8")
    program.chmod(0o755)
    return str(folder)


def test_a_busy_gpu_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", nvidia_smi(tmp_path, "0\\n", f"{os.getpid()}, python\\n"))
    assert why_busy("GPU-1") is None
    assert "--id=GPU-1" in (tmp_path / "asked").read_text()
    nvidia_smi(tmp_path, "0\\n", f"{os.getpid()}, python\\n7, /usr/bin/other\\n")
    assert why_busy("GPU-1") == "used by /usr/bin/other (process 7)"
    nvidia_smi(tmp_path, "93\\n", "")
    assert why_busy("GPU-1") == "it is busy 93 % of the time"
    nvidia_smi(tmp_path, "[N/A]\\n", "")
    assert why_busy("GPU-1") is None
    nvidia_smi(tmp_path, "93\\n", "", code=6)
    assert why_busy("GPU-1") is None
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert why_busy("GPU-1") is None
