"""Targets: detection from /proc/cpuinfo, names, and what runs where."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tvm_na import settings
from tvm_na.jit import build
from tvm_na.problems.attention import NAProblem
from tvm_na.targets import target

V2 = "fpu sse4_2 popcnt ssse3 cx16"
V3 = f"{V2} avx2 bmi1 bmi2 f16c fma movbe"
V4 = f"{V3} avx512f avx512bw avx512cd avx512dq avx512vl"
BF16 = f"{V4} avx512_bf16"
AMX = f"{BF16} amx_tile amx_bf16"


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    target.detect_target.cache_clear()
    yield
    target.detect_target.cache_clear()


def machine(monkeypatch: pytest.MonkeyPatch, name: str, flags: str, system: str = "Linux") -> None:
    monkeypatch.setattr(target.platform, "machine", lambda: name)
    monkeypatch.setattr(target.platform, "system", lambda: system)
    listed = "Features" if name == "aarch64" else "flags"
    monkeypatch.setattr(target, "_cpuinfo", lambda field: flags if field == listed else "")


@pytest.mark.parametrize(
    ("name", "flags", "expected"),
    [
        ("x86_64", AMX, "llvm-x86-amx-bf16"),
        ("x86_64", AMX.replace("amx_tile", ""), "llvm-x86-avx512-bf16"),
        ("x86_64", AMX.replace("avx512_bf16", ""), "llvm-x86-avx512"),
        ("x86_64", BF16.replace("avx512vl", ""), "llvm-x86-avx2"),
        ("x86_64", V4, "llvm-x86-avx512"),
        ("x86_64", V4.replace("avx512vl", ""), "llvm-x86-avx2"),
        ("x86_64", V3, "llvm-x86-avx2"),
        ("x86_64", V3.replace(" fma", ""), "llvm-x86-sse4"),
        ("AMD64", V2, "llvm-x86-sse4"),
        ("aarch64", "", "llvm-aarch64-neon"),
        ("aarch64", "fp asimd asimddp", "llvm-aarch64-neon"),
        ("aarch64", "fp asimd asimddp i8mm bf16", "llvm-aarch64-neon-bf16"),
    ],
)
def test_the_level_is_what_all_its_features_say(
    monkeypatch: pytest.MonkeyPatch, name: str, flags: str, expected: str
) -> None:
    machine(monkeypatch, name, flags)
    assert target.detect_target().name == expected
    assert target.parse_target("native") == target.parse_target(expected)


@pytest.mark.parametrize(
    ("name", "flags", "system"), [("x86_64", "fpu", "Linux"), ("riscv64", "", "Linux"), ("arm64", "", "Darwin")]
)
def test_an_unknown_machine_is_an_error(monkeypatch: pytest.MonkeyPatch, name: str, flags: str, system: str) -> None:
    machine(monkeypatch, name, flags, system)
    with pytest.raises(RuntimeError, match="target: required"):
        target.detect_target()


def test_an_unknown_name_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="target: required native or one of .*, got 'sse9'"):
        target.parse_target("sse9")
    monkeypatch.setenv("TVM_NA_TARGET", "sse9")
    assert settings.target_name() == "sse9"
    with pytest.raises(ValueError, match="target: required native"):
        build.current_target()


def test_a_kernel_this_cpu_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, "x86_64", V3)
    for name, runs in (("avx512", False), ("avx2", True), ("sse4", True)):
        if runs:
            target.check_runs_here(target.parse_target(f"llvm-x86-{name}"))
    for name in ("llvm-x86-avx512", "llvm-aarch64-neon"):
        with pytest.raises(ValueError, match=f"target: required one that this CPU can run .*, got {name}"):
            build.kernel_for(NAProblem.make((6, 7), 3, 1, 4), target.parse_target(name))


@pytest.mark.parametrize(
    ("name", "flags", "runs", "lacks"),
    [
        ("x86_64", AMX, "x86-amx-bf16 x86-avx512-bf16 x86-avx512 x86-avx2", "aarch64-neon"),
        ("x86_64", BF16, "x86-avx512-bf16 x86-avx512 x86-sse4", "x86-amx-bf16"),
        ("x86_64", V4, "x86-avx512", "x86-avx512-bf16 x86-amx-bf16"),
        ("aarch64", "asimd bf16", "aarch64-neon-bf16 aarch64-neon", "x86-sse4"),
        ("aarch64", "asimd", "aarch64-neon", "aarch64-neon-bf16"),
    ],
)
def test_a_level_runs_what_is_below_it(
    monkeypatch: pytest.MonkeyPatch, name: str, flags: str, runs: str, lacks: str
) -> None:
    """By the check before a kernel is loaded, and by the features that an artifact's manifest lists."""
    machine(monkeypatch, name, flags)
    for level in runs.split():
        found = target.parse_target(f"llvm-{level}")
        target.check_runs_here(found)
        assert target.cpu_features(found) and not target.missing_features(target.cpu_features(found))
    for level in lacks.split():
        found = target.parse_target(f"llvm-{level}")
        assert target.missing_features(target.cpu_features(found))
        with pytest.raises(ValueError, match=f"target: required one that this CPU can run .*, got llvm-{level}"):
            target.check_runs_here(found)


@pytest.mark.parametrize("name", target.list_targets())
def test_a_target_is_found_by_what_tvm_writes(name: str) -> None:
    found = target.parse_target(name)
    spec = {"kind": found.kind, "mcpu": found.cpu, "mattr": list(found.features), "arch": found.arch}
    assert target.name_of_spec(spec) == name


@pytest.mark.parametrize(
    ("name", "dot", "without_dots", "with_dots"),
    [
        ("llvm-x86-amx-bf16", "vdpbf16ps", "x86-avx512-bf16 x86-avx512", "x86-avx512-bf16"),
        ("llvm-x86-avx512-bf16", "vdpbf16ps", "x86-amx-bf16 x86-avx512", "x86-amx-bf16"),
        ("llvm-x86-avx512", "", "x86-amx-bf16 x86-avx512-bf16", ""),
        ("llvm-x86-avx2", "", "", ""),
        ("llvm-aarch64-neon-bf16", "bfdot", "aarch64-neon", ""),
        ("cuda-sm_90", "", "", ""),
    ],
)
def test_levels_with_the_same_kernels(name: str, dot: str, without_dots: str, with_dots: str) -> None:
    found = target.parse_target(name)
    assert found.dot == dot
    for uses_dots, names in ((False, without_dots), (True, with_dots)):
        same = [level.name for level in target.alike(found, uses_dots)]
        assert same == [name, *(f"llvm-{other}" for other in names.split())]
