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


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    target.detect_target.cache_clear()
    yield
    target.detect_target.cache_clear()


def machine(monkeypatch: pytest.MonkeyPatch, name: str, flags: str, system: str = "Linux") -> None:
    monkeypatch.setattr(target.platform, "machine", lambda: name)
    monkeypatch.setattr(target.platform, "system", lambda: system)
    monkeypatch.setattr(target, "_cpuinfo", lambda field: flags if field == "flags" else "")


@pytest.mark.parametrize(
    ("name", "flags", "expected"),
    [
        ("x86_64", V4, "llvm-x86-avx512"),
        ("x86_64", V4.replace("avx512vl", ""), "llvm-x86-avx2"),
        ("x86_64", V3, "llvm-x86-avx2"),
        ("x86_64", V3.replace(" fma", ""), "llvm-x86-sse4"),
        ("AMD64", V2, "llvm-x86-sse4"),
        ("aarch64", "", "llvm-aarch64-neon"),
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
