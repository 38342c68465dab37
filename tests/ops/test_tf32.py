"""When float32 calls on a GPU are computed in TF32: with a pretended GPU, and on a real one."""

from __future__ import annotations

import dataclasses
import timeit
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.conftest import TOLERANCE
from tests.helpers import forget_calls, random_inputs, reference64, relative_error
from tests.ops.pretended_gpu import PretendedGpu
from tvm_na import na2d
from tvm_na.cli.common import in_dtype
from tvm_na.jit import build
from tvm_na.ops import launch as launchers
from tvm_na.ops import tf32
from tvm_na.problems.attention import TF32, NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.targets.target import parse_target

SERVED = NAProblem.make((6, 7), 3, 2, 16, bias=True, return_lse=True)
GPU = torch.device("cuda", 0)


def _legacy(allow: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = allow


def _newer(allow: bool) -> None:
    torch.backends.cuda.matmul.fp32_precision = "tf32" if allow else "ieee"


def _of_everything(allow: bool) -> None:
    torch.backends.fp32_precision = "tf32" if allow else "none"  # type: ignore[attr-defined]


def _by_name(allow: bool) -> None:
    torch.set_float32_matmul_precision("high" if allow else "highest")


WAYS = [_legacy, _newer, _of_everything, _by_name]


def restore() -> None:
    torch.set_float32_matmul_precision("highest")
    torch.backends.fp32_precision = "none"  # type: ignore[attr-defined]
    torch.backends.cuda.matmul.fp32_precision = "none"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """PyTorch's settings as they are by default, before and after."""
    restore()
    yield
    restore()


def ran(gpu: PretendedGpu) -> list[str]:
    """The dtype of each kernel that ran."""
    return [call.problem.dtype for call in gpu.calls]


def test_by_default_nothing_is_rounded(gpu: PretendedGpu) -> None:
    launchers.launcher_of(SERVED, GPU)(random_inputs(SERVED, 1, 0), 0.5)
    assert not tf32.is_allowed()
    assert [problem for problem, _ in gpu.built] == [SERVED] and ran(gpu) == ["float32"]


@pytest.mark.parametrize("way", WAYS)
def test_the_setting_counts_at_each_call(gpu: PretendedGpu, way: Callable[[bool], None]) -> None:
    launcher = launchers.launcher_of(SERVED, GPU)
    inputs = random_inputs(SERVED, 1, 0)
    for allow in (True, True, False, True):
        way(allow)
        out, lse = launcher(inputs, 0.5)
        assert out.dtype == torch.float32 and lse.dtype == torch.float32
        assert relative_error(out, reference64(SERVED, inputs, 0.5)[0]) <= TOLERANCE["float32"]  # a pretended kernel
    assert ran(gpu) == [TF32, TF32, "float32", TF32]
    assert [problem.dtype for problem, _ in gpu.built] == ["float32", TF32]  # each once, when it was wanted


def test_only_what_is_wanted_is_built(gpu: PretendedGpu) -> None:
    _newer(True)
    launchers.launcher_of(SERVED, GPU)
    assert [problem for problem, _ in gpu.built] == [dataclasses.replace(SERVED, dtype=TF32)]


@pytest.mark.parametrize(
    "change", [{"dtype": "float64"}, {"dtype": "float16"}, {"stride": (2, 2)}, {"head_dim": 8}, {"head_dim_v": 24}]
)
def test_what_tensor_cores_do_not_serve_stays_exact(gpu: PretendedGpu, change: dict[str, Any]) -> None:
    _newer(True)
    problem = dataclasses.replace(SERVED, **change)
    launchers.launcher_of(problem, GPU)
    assert [built for built, _ in gpu.built] == [problem]


def test_older_gpus_stay_exact(gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    _newer(True)
    monkeypatch.setattr(build, "target_for", lambda kind, index=None: parse_target("cuda-sm_75"))
    launchers.launcher_of(SERVED, GPU)
    assert gpu.built == [(SERVED, "cuda-sm_75")]


@pytest.mark.parametrize("compiled", [False, True])
def test_calls_of_the_operator(gpu: PretendedGpu, monkeypatch: pytest.MonkeyPatch, compiled: bool) -> None:
    """Also in compiled code, and through the way that a second call takes."""
    make = launchers.launcher_of
    monkeypatch.setattr(launchers, "launcher_of", lambda problem, device: make(problem, GPU))
    forget_calls()
    query, key, value, rpb = random_inputs(SERVED, 1, 0)

    def attend(query: torch.Tensor) -> torch.Tensor:
        return na2d(query, key, value, 3, rpb=rpb, backend="compiled")

    call = torch.compile(attend, backend="eager", fullgraph=True) if compiled else attend
    for allow in (False, True, True, False):
        _newer(allow)
        call(query)
    assert ran(gpu) == ["float32", TF32, TF32, "float32"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("public", [False, True], ids=["quick", "public"])
def test_every_way_of_setting_is_seen_without_a_warning(
    monkeypatch: pytest.MonkeyPatch, way: Callable[[bool], None], public: bool
) -> None:
    if public:
        monkeypatch.setattr(tf32, "_precision", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for allow in (True, False):
            way(allow)
            assert tf32.is_allowed() is allow


def test_asking_is_quick() -> None:
    assert min(timeit.repeat(tf32.is_allowed, number=1000, repeat=20)) / 1000 < 1e-6


def test_tensors_of_tf32_are_those_of_float32() -> None:
    problem = dataclasses.replace(SERVED, dtype=TF32)
    assert (problem.tensor_dtype, problem.accum_dtype, str(problem)) == (
        "float32",
        "float32",
        "6x7 heads 2 dim 16 k 3 tf32 rpb lse",
    )
    assert NAProblem.from_json(problem.to_json()) == problem
    assert problem.to_json().replace(TF32, "float32") == SERVED.to_json()


def test_tuning_in_tf32_tunes_what_calls_run() -> None:
    target = parse_target("cuda-sm_90")
    strided = dataclasses.replace(SERVED, dtype="float64", stride=(2, 2))
    assert in_dtype(SERVED, TF32, target) == dataclasses.replace(SERVED, dtype=TF32)
    assert in_dtype(strided, TF32, target) == dataclasses.replace(strided, dtype="float32")
    assert in_dtype(BackwardProblem(SERVED), TF32, target) == BackwardProblem(SERVED)


@pytest.mark.gpu
def test_gpu_takes_tf32_where_it_is_allowed() -> None:
    problem = NAProblem.make((28, 30), 7, 4, 32, bias=True, return_lse=True)
    inputs = random_inputs(problem, 2, 0)
    wanted, wanted_lse = reference64(problem, inputs)
    query, key, value, rpb = (t.cuda() for t in inputs if t is not None)
    for allow in (False, True, False):
        _newer(allow)
        out, lse = na2d(query, key, value, 7, rpb=rpb, return_lse=True, backend="compiled")
        error, lse_error = relative_error(out.cpu(), wanted), relative_error(lse.cpu(), wanted_lse)
        rounded = allow and torch.cuda.get_device_capability() >= (8, 0)
        assert max(error, lse_error) <= TOLERANCE[TF32 if rounded else "float32"]
        assert (error > 20 * TOLERANCE["float32"]) == rounded
