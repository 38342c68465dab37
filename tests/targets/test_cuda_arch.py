"""CUDA targets: names, devices, tags, specs of tuning records, what runs where."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.cuda.cuda_funcs import row_sums
from tvm_na import fingerprint
from tvm_na.jit import build
from tvm_na.problems.attention import NAProblem
from tvm_na.records import read as records
from tvm_na.records import select
from tvm_na.records import write as database
from tvm_na.records.write import TuningDatabase
from tvm_na.targets import cuda_arch as arch
from tvm_na.targets import target
from tvm_na.targets.target import detect_target, list_targets, parse_target

NAMES = [f"cuda-sm_{number}" for number in (75, 80, 86, 89, 90, 100, 120)]
PROBLEM = NAProblem.make((6, 7), 3, 1, 4)

Devices = Callable[..., None]


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Devices:
    """Have PyTorch see devices of these compute capabilities; the first is the current one."""

    def see(*capabilities: tuple[int, int]) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)

    return see


def test_every_architecture_is_a_target() -> None:
    assert [name for name in list_targets() if name.startswith("cuda")] == NAMES
    for name in NAMES:
        found = parse_target(name)
        assert (found.name, found.kind, found.arch) == (name, "cuda", name.removeprefix("cuda-"))
        assert found.shared_bytes == 48 * 1024 < found.max_shared_bytes < 228 * 1024
        assert (found.vector_bytes, found.vector_registers, found.registers_per_block) == (16, 255, 65536)


def test_a_cpu_has_nothing_of_a_gpu() -> None:
    described = detect_target().to_dict()
    assert set(described) == {
        *("name", "kind", "triple", "cpu", "features", "vector_bytes", "vector_registers"),
    }  # as in the records that were measured before there were GPUs
    assert {"arch", "max_shared_bytes"} <= set(parse_target(NAMES[0]).to_dict())


@pytest.mark.parametrize(
    ("capability", "name"),
    [
        ((7, 5), "sm_75"),
        ((8, 0), "sm_80"),
        ((8, 6), "sm_86"),
        ((8, 7), "sm_86"),
        ((8, 9), "sm_89"),
        ((9, 0), "sm_90"),
        ((10, 0), "sm_100"),
        ((10, 3), "sm_100"),
        ((11, 0), "sm_100"),
        ((12, 0), "sm_120"),
        ((12, 1), "sm_120"),
        ((13, 0), "sm_120"),
    ],
)
def test_a_device_gets_the_newest_it_can_run(devices: Devices, capability: tuple[int, int], name: str) -> None:
    devices(capability)
    found = target.detect_cuda_target()
    assert found == parse_target("cuda") == parse_target(f"cuda-{name}")
    target.check_runs_here(found)
    target.check_runs_here(found, 0)


def test_a_device_that_is_too_old_or_missing_is_an_error(devices: Devices) -> None:
    devices((7, 0))
    with pytest.raises(ValueError, match="capability: required a GPU of compute capability 7.5 or newer, got 7.0"):
        target.detect_cuda_target()
    with pytest.raises(ValueError, match="device_index: required one of 1 CUDA devices, got 1"):
        target.detect_cuda_target(1)
    devices()
    with pytest.raises(ValueError, match="target: required a CUDA device for cuda, got none"):
        parse_target("cuda")


@pytest.mark.parametrize(
    ("capability", "runs"),
    [
        ((8, 6), {"sm_80", "sm_86"}),
        ((9, 0), {"sm_90"}),
        ((11, 0), {"sm_100"}),  # from PTX
        ((12, 1), {"sm_120"}),
        ((7, 0), set()),
    ],
)
def test_kernels_for_other_devices_are_refused(devices: Devices, capability: tuple[int, int], runs: set[str]) -> None:
    devices(capability)
    for name in NAMES:
        if name.removeprefix("cuda-") in runs:
            target.check_runs_here(parse_target(name), 0)
            continue
        with pytest.raises(ValueError, match=f"target: required one that the CUDA devices can run .*, got {name}"):
            target.check_runs_here(parse_target(name))
        with pytest.raises(ValueError, match=f"target: required one that the device cuda:0 can run .*, got {name}"):
            target.check_runs_here(parse_target(name), 0)


def test_without_a_device_no_cuda_kernel_is_loaded(devices: Devices, monkeypatch: pytest.MonkeyPatch) -> None:
    devices()
    monkeypatch.setattr(build, "_build", lambda *_: pytest.fail("built"))
    with pytest.raises(ValueError, match="target: required one that this machine can run, got cuda-sm_90 and no such"):
        build.kernel_for(PROBLEM, parse_target("cuda-sm_90"))


def test_any_of_several_devices_may_run_a_kernel(devices: Devices) -> None:
    devices((8, 0), (9, 0))
    target.check_runs_here(parse_target("cuda-sm_90"))
    target.check_runs_here(parse_target("cuda-sm_90"), 1)
    with pytest.raises(ValueError, match="the device cuda:0 can run .cuda-sm_80."):
        target.check_runs_here(parse_target("cuda-sm_90"), 0)
    with pytest.raises(ValueError, match="no such CUDA device"):
        target.check_runs_here(parse_target("cuda-sm_90"), 2)


def test_the_environment_speaks_of_cpus_or_of_gpus(devices: Devices, monkeypatch: pytest.MonkeyPatch) -> None:
    devices((8, 0), (9, 0))
    native = detect_target()
    for named in ("native", "cuda", native.name):
        monkeypatch.setenv("TVM_NA_TARGET", named)
        assert build.target_for("cpu") == native
        assert [build.target_for("cuda", index).name for index in (0, 1)] == ["cuda-sm_80", "cuda-sm_90"]
    monkeypatch.setenv("TVM_NA_TARGET", "cuda-sm_80")
    assert build.current_target().name == "cuda-sm_80"
    assert build.target_for("cpu") == native
    assert build.target_for("cuda", 0).name == "cuda-sm_80"
    with pytest.raises(ValueError, match="target: required one that the device cuda:1 can run"):
        build.target_for("cuda", 1)


@pytest.mark.parametrize(
    ("tag", "name"),
    [
        ("nvidia/geforce-rtx-4090", "cuda-sm_89"),
        ("nvidia/nvidia-a100", "cuda-sm_80"),
        ("nvidia/nvidia-h100", "cuda-sm_90"),  # sm_90a to TVM
        ("nvidia/nvidia-t4", "cuda-sm_75"),
    ],
)
def test_tags_of_tvm(tag: str, name: str) -> None:
    assert parse_target(tag).name == name


def test_other_tags_are_refused() -> None:
    with pytest.raises(ValueError, match="target: required one of TVM's tags for CUDA GPUs.*, got 'nvidia/abacus'"):
        parse_target("nvidia/abacus")
    with pytest.raises(ValueError, match="capability: required a GPU of compute capability 7.5 or newer, got 6.1"):
        parse_target("nvidia/tesla-p40")
    with pytest.raises(ValueError, match="target: required native or one of .*cuda-sm_90.* got 'cuda-sm_91'"):
        parse_target("cuda-sm_91")
    with pytest.raises(ValueError, match="arch: required sm_ and a compute capability, such as sm_90, got 'sm_x'"):
        arch.capability_of("sm_x")


@pytest.mark.parametrize("name", NAMES)
def test_tvms_target(name: str) -> None:
    known = parse_target(name)
    made = known.tvm_target()
    assert (made.kind.name, str(made.attrs["arch"])) == ("cuda", known.arch)
    assert int(made.attrs["max_shared_memory_per_block"]) == known.max_shared_bytes
    assert (made.host.kind.name, str(made.host.attrs["mcpu"])) == (
        "llvm",
        {"x86-64": "x86-64", "aarch64": "generic"}[target.host_machine()],
    )
    spec = {key: value for key, value in made.export().items() if key in ("kind", "arch", "host")}
    assert target.name_of_spec({"kind": str(spec["kind"]), "arch": str(spec["arch"])}) == name


def test_specs_of_unknown_architectures_have_no_name() -> None:
    assert target.name_of_spec({"kind": "cuda", "arch": "sm_70"}) is None
    assert target.name_of_spec({"kind": "cuda"}) is None
    assert target.name_of_spec({"kind": "rocm", "arch": "sm_90"}) is None


def test_records_of_a_gpu_are_written_and_read(tmp_path: Path) -> None:
    from tvm import s_tir
    from tvm.s_tir.meta_schedule.arg_info import TensorInfo

    known = parse_target("cuda-sm_90")
    attributes = {"tvm_na.problem": PROBLEM.to_json(), "tvm_na.formulation": "{}"}
    module = row_sums(attributes=attributes)
    with TuningDatabase(tmp_path, known) as opened:
        workload = opened.register(module)
        arguments = [TensorInfo("float32", [1, 4]) for _ in PROBLEM.arguments()]
        opened.commit(workload, s_tir.Schedule(module).trace, [1e-5, 2e-5], threads=4, args_info=arguments)
    (record,) = records.records_in(tmp_path)
    assert (record.target, record.threads, record.run_secs) == ("cuda-sm_90", 1, (1e-5, 2e-5))
    meta = records.read_meta(tmp_path)
    assert meta is not None
    database.check_meta(meta, tmp_path, known)
    with pytest.raises(ValueError, match="required records of cuda-sm_80"):
        database.check_meta(meta, tmp_path, parse_target("cuda-sm_80"))


def test_a_kernel_is_found_wherever_the_same_gpu_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """By what it depends on: not by the compilers that are there, nor by the CPU, but for its instruction set."""
    from tvm_na.cuda import toolchain

    gpu, cpu = parse_target("cuda-sm_90"), detect_target()
    before, of_cpu = (fingerprint.request_digest(PROBLEM, known) for known in (gpu, cpu))
    monkeypatch.setattr(toolchain, "description", lambda: "nvcc 13.1.80")
    for detect in ("tvm_na.targets.target.detect_target", "tvm_na.jit.build.detect_target"):
        monkeypatch.setattr(detect, lambda: parse_target("llvm-x86-sse4"))
    assert fingerprint.request_digest(PROBLEM, gpu) == before
    for change in (
        lambda patch: patch.setattr(platform, "machine", lambda: "aarch64"),
        lambda patch: patch.setattr(toolchain, "FLAGS", ("--use_fast_math",)),
    ):
        with pytest.MonkeyPatch.context() as patch:
            change(patch)
            assert fingerprint.request_digest(PROBLEM, gpu) != before
            assert fingerprint.request_digest(PROBLEM, cpu) == of_cpu
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    with pytest.raises(RuntimeError, match="target: required an x86-64 or AArch64 machine, got riscv64"):
        fingerprint.request_digest(PROBLEM, gpu)


def test_info_lists_devices_and_the_compiler(devices: Devices, monkeypatch: pytest.MonkeyPatch) -> None:
    from tvm_na.cli import info as cli_info
    from tvm_na.cuda import toolchain

    seen = SimpleNamespace(name="A100", multi_processor_count=108, total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: seen)
    monkeypatch.setattr(toolchain, "find_compiler", lambda: toolchain.Nvcc("/opt/cuda/bin/nvcc", "13.0.88"))
    devices((8, 0), (7, 0))
    first, second, compiler = cli_info._cuda()
    assert first == ("cuda:0", "A100 (compute capability 8.0, 108 SMs, 80 GiB), target cuda-sm_80")
    assert "none (capability: required" in str(second[1])
    assert compiler == ("compiler", "nvcc 13.0.88 (/opt/cuda/bin/nvcc)")

    def none() -> Any:
        raise RuntimeError("kernels for GPUs: required NVRTC")

    monkeypatch.setattr(toolchain, "find_compiler", none)
    devices()
    assert cli_info._cuda() == [
        ("devices", "none that PyTorch sees"),
        ("compiler", "none (kernels for GPUs: required NVRTC)"),
    ]
    monkeypatch.setenv("TVM_NA_TARGET", "cuda-sm_90")
    assert ("target", "cuda-sm_90 (cuda, sm_90, 227 KiB of shared memory per block)") in cli_info._machine()


def test_threads_play_no_role_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(select, "_near", lambda *arguments: asked.append(arguments[-1]) or [])
    select.select(PROBLEM, parse_target("cuda-sm_90"), threads=7)
    select.select(PROBLEM, detect_target(), threads=7)
    assert asked == [1, 7]


def test_a_kernel_depends_on_what_we_do_before_cuda_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, cpu = parse_target("cuda-sm_90"), detect_target()
    before = {known: fingerprint.request_digest(PROBLEM, known) for known in (gpu, cpu)}
    monkeypatch.setattr(fingerprint, "_passes_digest", lambda: "changed")
    assert fingerprint.request_digest(PROBLEM, gpu) != before[gpu]
    assert fingerprint.request_digest(PROBLEM, cpu) == before[cpu]
