"""What a GPU can launch, and how it is known before a launch: threads, shared memory, registers, spills."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.cuda.cuda_funcs import SHARED_BYTES, needs_compiler, row_sums
from tests.cuda.fake_driver import driver_calls
from tvm_na.cuda import inspection, library, toolchain
from tvm_na.cuda.limits import LEAST_REGISTERS, Resources, Sizes, UnlaunchableError, check_resources, check_sizes
from tvm_na.jit.library import write_cuda_library
from tvm_na.targets.target import parse_target
from tvm_na.tune.builder import MOST_SPILLED, Builder, Built, Source, compile_source, source_of

SM_75, SM_80, SM_86, SM_90 = (parse_target(f"cuda-sm_{n}") for n in (75, 80, 86, 90))
KIB = 1024


def reversed_rows(elements: int, scope: str, threads: int = 128) -> Any:
    """The IRModule of ``main(x [batch, elements], out)``: rows reversed, through ``elements`` floats in a scope."""
    import tvm
    from tvm import s_tir, te, tirx

    batch = tirx.Var("batch", "int32")
    x = te.placeholder((batch, elements), name="x")
    copy = te.compute((batch, elements), lambda b, i: x[b, i] * 2.0, name="copy")
    out = te.compute((batch, elements), lambda b, i: copy[b, elements - 1 - i], name="out")
    func = te.create_prim_func([x, out]).with_attr("global_symbol", "main")
    sch = s_tir.Schedule(tvm.IRModule({"main": func}))
    sample, row = sch.get_loops(sch.get_sblock("out"))
    sch.bind(sample, "blockIdx.x")
    sch.bind(sch.split(row, [None, threads])[1], "threadIdx.x")
    sch.compute_at(sch.get_sblock("copy"), sample, preserve_unit_loops=True)
    sch.bind(sch.split(sch.get_loops(sch.get_sblock("copy"))[-1], [None, threads])[1], "threadIdx.x")
    sch.set_scope(sch.get_sblock("copy"), 0, scope)
    return sch.mod


def test_sizes_are_known_without_a_compiler() -> None:
    assert library.generated(row_sums(), SM_90)[1] == Sizes(128, SHARED_BYTES, 0)
    assert library.generated(reversed_rows(8192, "shared"), SM_90)[1] == Sizes(128, 32 * KIB, 0)
    assert library.generated(reversed_rows(32768, "shared.dyn", 256), SM_90)[1] == Sizes(256, 0, 128 * KIB)


@pytest.mark.parametrize(
    ("sizes", "target", "what"),
    [
        (Sizes(1024, 48 * KIB, 115 * KIB), SM_80, None),
        (Sizes(1024, 0, 227 * KIB), SM_90, None),
        (Sizes(32, 0, 64 * KIB), SM_75, None),
        (Sizes(1025, 0, 0), SM_90, "threads"),
        (Sizes(32, 48 * KIB + 1, 0), SM_90, "shared memory"),
        (Sizes(32, 1, 64 * KIB), SM_75, "shared memory"),
        (Sizes(32, 48 * KIB, 115 * KIB + 1), SM_80, "shared memory"),
        (Sizes(32, 0, 99 * KIB + 1), SM_86, "shared memory"),
        (Sizes(32, 0, 227 * KIB + 1), SM_90, "shared memory"),
    ],
)
def test_what_a_block_may_have(sizes: Sizes, target: Any, what: str | None) -> None:
    if what is None:
        check_sizes(sizes, target)
        return
    with pytest.raises(UnlaunchableError, match=f"{what}: required .*, got") as caught:
        check_sizes(sizes, target)
    assert caught.value.what == what


def test_registers_are_handed_out_to_warps() -> None:
    check_resources(Resources(64, 0, 0, 0), Sizes(1024, 0, 0), SM_90)
    check_resources(Resources(255, 0, 0, 0), Sizes(256, 0, 0), SM_90)
    for registers, threads in ((65, 1024), (255, 257)):
        with pytest.raises(UnlaunchableError, match=f"registers: required at most 65536 .*, got {registers}"):
            check_resources(Resources(registers, 0, 0, 0), Sizes(threads, 0, 0), SM_90)
    with pytest.raises(UnlaunchableError, match="shared memory"):  # what the assembler counts, counts
        check_resources(Resources(32, 0, 0, 40 * KIB), Sizes(32, 0, 190 * KIB), SM_90)


@needs_compiler
def test_what_must_spill_is_known_before_the_compiler_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_(*_: Any) -> Any:
        raise RuntimeError("the compiler ran")

    monkeypatch.setattr(type(toolchain.find_compiler()), "compile", compile_)

    def failure(least: int) -> tuple[str, str]:
        module = reversed_rows(8192, "shared", 1024)
        module["main"] = module["main"].with_attr(LEAST_REGISTERS, least)
        found = compile_source(source_of(module), SM_90, "none")
        assert found is not None
        return found

    assert failure(64)[0] == "build" and "the compiler ran" in failure(64)[1]
    message = "registers: required at most 65536 of a block, got at least 65 in each of 1024 threads"
    assert failure(65) == ("too many registers", message)


@needs_compiler
def test_the_compiler_tells_what_a_thread_uses() -> None:
    found = library.compile_library(row_sums(), SM_80)
    assert found.sizes == Sizes(128, SHARED_BYTES, 0)
    assert 8 <= found.resources.registers <= 64
    assert (found.resources.spill_bytes, found.resources.shared_bytes) == (0, SHARED_BYTES)


def test_what_nvrtc_says_of_a_kernel_is_read_as_well() -> None:
    log = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'k' for 'sm_90'
ptxas info    : Function properties for k
ptxas         .     16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 90 registers, used 1 barriers, 256 bytes smem
"""
    assert inspection.resources_of(log) == {"k": Resources(90, 20, 16, 256)}


@needs_compiler
def test_the_builder_rejects_what_cannot_be_launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the CUDA compiler is asked, and with the reason."""
    too_large = source_of(reversed_rows(32768, "shared.dyn"))
    builder = Builder(1, SM_86, tmp_path, tmp_path / "log")
    try:
        fits, shared, threads = builder.build(
            [
                source_of(reversed_rows(16384, "shared.dyn")),
                too_large,
                source_of(reversed_rows(4096, "shared", threads=2048)),
            ]
        )
    finally:
        builder.close()
    assert fits.failure is None and fits.file is not None and fits.file.stat().st_size > 0
    limit = "at most 101376 bytes of a block of cuda-sm_86, got 131072"
    assert shared == Built(None, "too much shared memory", f"shared memory: required {limit}")
    assert (threads.file, threads.failure) == (None, "too many threads")
    assert threads.message == "threads: required 1 to 1024 of a block, got 2048"
    monkeypatch.setattr(toolchain.Nvcc, "run", lambda *_: pytest.fail("compiled"))
    monkeypatch.setattr(toolchain.Nvrtc, "compile", lambda *_: pytest.fail("compiled"))
    assert compile_source(too_large, SM_86, str(tmp_path / "none")) is not None


@pytest.mark.parametrize("spilled", [0, MOST_SPILLED, MOST_SPILLED + 1])
def test_the_builder_rejects_what_spills_badly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spilled: int) -> None:
    class Library:
        resources = Resources(255, spilled, spilled, 0)

    monkeypatch.setattr(library, "compile_library", lambda module, target, ptx: Library())
    monkeypatch.setattr("tvm_na.jit.library.write_cuda_library", lambda made, file: file.write_text("kernel"))
    file = tmp_path / "kernel.so"
    found = compile_source(Source(source_of(row_sums()).module), SM_90, str(file))
    assert (found is None) == file.exists() == (spilled <= MOST_SPILLED)
    if found is not None:
        assert found == ("spills", f"spills: required at most {MOST_SPILLED} bytes of a thread, got {spilled}")


CALLS = """
    x, out = (cuda_tensor((3, 16384), 0) for _ in range(2))
    kernel(x, out)
    print(log.read_text().splitlines())
"""


@needs_compiler
def test_more_than_48_kib_are_asked_for_before_the_launch(tmp_path: Path) -> None:
    file, attribute = tmp_path / "kernel.so", 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
    write_cuda_library(library.compile_library(reversed_rows(16384, "shared.dyn"), SM_90), file)
    (calls,) = driver_calls(file, CALLS)
    asked = calls.index(f"cuFuncSetAttribute {attribute} {64 * KIB}")
    (launch,) = [at for at, call in enumerate(calls) if call.startswith("cuLaunchKernelEx")]
    assert asked < launch
    assert f"grid 3 1 1 block 128 1 1 shared {64 * KIB} " in calls[launch]
