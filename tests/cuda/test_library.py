"""Compiling for GPUs on a machine without one: libraries, their device code, what it uses of a GPU."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cuda.cuda_funcs import SHARED_BYTES, missing, needs_compiler, needs_nvcc, row_sums
from tvm_na.cuda import fatbin, inspection, library, nvrtc, toolchain, toolkit, workarounds
from tvm_na.jit import build, cache
from tvm_na.jit.library import write_cuda_library
from tvm_na.problems.attention import NAProblem
from tvm_na.targets.target import parse_target

SM_80, SM_90 = parse_target("cuda-sm_80"), parse_target("cuda-sm_90")


needs_nvrtc = pytest.mark.skipif(missing(toolchain.find_nvrtc), reason="there is no NVRTC")


@pytest.fixture(scope="module")
def source() -> str:
    return library.generated(row_sums(), SM_90)[0]


def test_source_needs_neither_gpu_nor_compiler(source: str) -> None:
    assert "__global__ void __launch_bounds__(128) main_kernel(" in source
    assert "__shared__" in source


@needs_compiler
@pytest.mark.parametrize("target", [SM_80, SM_90], ids=lambda t: t.arch)
def test_the_library_holds_machine_code_and_no_source(tmp_path: Path, target: Any) -> None:
    compiled = library.compile_library(row_sums(), target)
    kinds = {(part.kind, part.arch) for part in fatbin.parts_of(compiled.image)}
    assert kinds in ({("cubin", target.arch), ("ptx", target.arch)}, {("cubin", "")})
    file = tmp_path / "kernel.so"
    write_cuda_library(compiled, file)
    data = file.read_bytes()
    assert compiled.image in data
    assert compiled.source.encode() not in data
    assert b"__tvm_ffi_main" in data


@needs_nvcc
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_nvcc_makes_a_fatbin_of_both(dtype: str) -> None:
    text = library.generated(row_sums(dtype), SM_80)[0]
    image, _ = toolchain.find_nvcc().compile(text, "sm_80")
    assert sorted(fatbin.parts_of(image)) == [("cubin", "sm_80"), ("ptx", "sm_80")]
    fatbin.require_cubin(image, "sm_80")
    with pytest.raises(RuntimeError, match="the CUDA compiler: required machine code for sm_90, got .*cubin sm_80"):
        fatbin.require_cubin(image, "sm_90")


@needs_nvrtc
def test_nvrtc_makes_the_same(source: str) -> None:
    compiler = toolchain.find_nvrtc()
    assert toolchain.find_compiler().name == "NVRTC"
    cubin, ptx, _ = nvrtc.compile(source, "sm_90", toolchain.FLAGS, compiler.include_dirs)
    assert [part.kind for part in fatbin.parts_of(cubin)] == ["cubin"]
    assert [part.kind for part in fatbin.parts_of(ptx)] == ["ptx"]
    assert b".target sm_90" in ptx
    joined = fatbin.join(cubin, ptx, "sm_90")
    if joined is not None:
        assert sorted(fatbin.parts_of(joined)) == [("cubin", "sm_90"), ("ptx", "sm_90")]
    with pytest.raises(RuntimeError, match=r"NVRTC failed .*undeclared|undefined"):
        nvrtc.compile('extern "C" __global__ void k() { nothing(); }', "sm_90", (), compiler.include_dirs)


@needs_nvcc
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_what_a_kernel_uses(source: str, arch: str) -> None:
    seen = inspection.inspect_kernel(source, arch)
    assert (seen.name, seen.arch) == ("main_kernel", arch)
    assert 8 <= seen.registers <= 64
    assert (seen.spill_bytes, seen.stack_bytes, seen.shared_bytes) == (0, 0, SHARED_BYTES)
    assert seen.language in ("SASS", "PTX")
    shuffles = seen.count("SHFL") if seen.language == "SASS" else seen.count("shfl")
    assert shuffles >= 5  # a warp's 32 lanes are summed in 5 steps
    with pytest.raises(ValueError, match="code: required the kernel other, got main_kernel"):
        inspection.inspect_kernel(source, arch, "other")


SPILLS = """
extern "C" __global__ void __maxnreg__(32) spilling(float* out, const float* in) {
  float values[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) values[i] = in[i * 128 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) out[i * 128 + threadIdx.x] = values[i] * values[63 - i];
}
extern "C" __global__ void indexed(float* out, const int* at) {
  float values[32];
  for (int i = 0; i < 32; ++i) values[i] = out[i];
  for (int i = 0; i < 32; ++i) values[at[i]] += out[threadIdx.x];
  for (int i = 0; i < 32; ++i) out[i] = values[i];
}
"""


@needs_nvcc
def test_spills_and_arrays_in_memory_are_seen() -> None:
    spilling = inspection.inspect_kernel(SPILLS, "sm_90", "spilling")
    assert spilling.spill_bytes > 0 and spilling.registers <= 32
    indexed = inspection.inspect_kernel(SPILLS, "sm_90", "indexed")
    assert (indexed.spill_bytes, indexed.stack_bytes) == (0, 128)
    with pytest.raises(ValueError, match="code: required one kernel, got .*spilling"):
        inspection.inspect_kernel(SPILLS, "sm_90")
    with pytest.raises(RuntimeError, match=r"(nvcc|NVRTC) failed.*\n.*error"):
        inspection.inspect_kernel("nonsense", "sm_90")


@needs_nvcc
def test_float32_is_computed_exactly() -> None:
    """Fast mathematics would show as approximate division and square roots."""
    code = 'extern "C" __global__ void k(float* x) { x[0] = x[1] / x[2] + sqrtf(x[3]) * x[4]; }'
    ptx = toolchain.find_nvcc().run(code, "--ptx", "-arch=compute_90")[0].decode()
    assert "div.rn.ftz.f32" in ptx and "sqrt.rn.ftz.f32" in ptx and "fma.rn.ftz.f32" in ptx
    assert ".approx" not in ptx
    assert not any("fast" in flag for flag in toolchain.FLAGS)


def test_instructions_are_counted_in_ptx_and_in_sass() -> None:
    ptx = """
.visible .entry k(
	.param .u64 k_param_0
)
{
	.reg .pred 	%p<2>;
	ld.param.u64 	%rd1, [k_param_0];
	@%p1 bra 	$L__BB0_2;
	fma.rn.f32 	%f1, %f2, %f3, %f4;
	fma.rn.f32 	%f1, %f2, %f3, %f4;
	{ mul.f32 %f1, %f1, %f1; }
$L__BB0_2:
	ret;

}
.visible .entry other() { ret; }
"""
    assert inspection.count_ptx(ptx, "k") == {"ld.param.u64": 1, "bra": 1, "fma.rn.f32": 2, "ret": 1}
    sass = """
		Function : other
        /*0000*/                   EXIT ;
		Function : k
	.headerflags	@"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;   /* 0x00000a00ff017b82 */
        /*0010*/              @!P0 HMMA.16816.F32 R4, R4, R8, RZ ;
        /*0020*/                   EXIT ;
"""
    assert inspection.count_sass(sass, "k") == {"LDC": 1, "HMMA.16816.F32": 1, "EXIT": 1}


def test_a_kernel_with_memory_of_its_own_is_refused() -> None:
    with pytest.raises(RuntimeError, match="kernel: required one without global memory of its own"):
        library.generated(row_sums(workspace=True), SM_90)


def test_a_function_without_device_code_is_refused() -> None:
    import tvm
    from tvm import te

    x = te.placeholder((4,), name="x")
    func = te.create_prim_func([x, te.compute((4,), lambda i: x[i] + 1, name="y")]).with_attr("global_symbol", "main")
    with pytest.raises(Exception, match="kernel: required one module of CUDA code|threads"):
        library.generated(tvm.IRModule({"main": func}), SM_90)


def test_the_environment_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    name = "TVM_COMPILE_FORCE_FALLBACK"
    for before in (None, "0"):
        monkeypatch.delenv(name, raising=False) if before is None else monkeypatch.setenv(name, before)
        library.generated(row_sums(), SM_90)
        assert os.environ.get(name) == before


# --- packed modules


def string(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def packed(code: bytes = b"__global__", kind: bytes = b"cuda", inner: bytes = b"cuda") -> bytes:
    tree = struct.pack("<Q3QQQ", 3, 0, 1, 1, 1, 1)
    modules = string(b"_lib") + string(kind) + string(string(inner) + b"table" + string(code))
    return string(tree + modules)


def test_source_gives_way_to_code() -> None:
    wanted = packed(b"\x7fELF", inner=b"cubin")
    assert library.with_code(packed(), b"__global__", "cubin", b"\x7fELF") == wanted


@pytest.mark.parametrize(
    "data",
    [packed(b"other"), packed(kind=b"metal"), packed(inner=b"ptx"), packed()[:-1], packed() + b"x", b"", string(b"")],
    ids=["source", "kind", "code", "short", "long", "empty", "nothing"],
)
def test_another_layout_is_an_error(data: bytes) -> None:
    with pytest.raises(RuntimeError, match="packed modules: required the layout of TVM 0.27, got"):
        library.with_code(data, b"__global__", "cubin", b"")


def test_torn_images_are_errors() -> None:
    with pytest.raises(ValueError, match="image: required a fatbin, a cubin or PTX, got 5 bytes"):
        fatbin.parts_of(b"hello")
    with pytest.raises(ValueError, match="image: required a fatbin of 116 bytes, got 16"):
        fatbin.parts_of(struct.pack("<IHHQ", 0xBA55ED50, 1, 16, 100))
    with pytest.raises(RuntimeError, match="required machine code for sm_90, got ptx"):
        fatbin.require_cubin(b"// PTX\n.version 9.0", "sm_90")


# --- compilers


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CUDA_HOME", "CUDA_PATH", "PATH"):
        monkeypatch.setenv(name, str(tmp_path))
    for module in (toolchain, toolkit):
        monkeypatch.setattr(module, "DEFAULT_HOME", str(tmp_path))
    monkeypatch.setattr(nvrtc, "_version", lambda: ImportError("No module named 'cuda'"))
    with pytest.raises(RuntimeError) as caught:
        toolchain.find_compiler()
    for part in ("cuda-bindings", "nvcc", "No module named 'cuda'", "CUDA_HOME"):
        assert part in str(caught.value)
    assert "nvcc" not in toolchain.description()
    assert toolkit.tool("fatbinary") is None
    cxx = shutil.which("g++") or shutil.which("clang++", path="/usr/bin")
    monkeypatch.setattr("tvm_na.compilers.cxx.command", lambda: [cxx])
    monkeypatch.setenv("TVM_NA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("tvm_na.schedules.spaces_for", lambda *_: ["a space"])
    with pytest.raises(RuntimeError, match="kernels for GPUs: required NVRTC"):
        build.compile_for(NAProblem.make((6, 7), 3, 1, 4), SM_90)


def test_nvcc_is_that_of_cuda_home_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("home", "path"):
        file = tmp_path / name / "bin" / "nvcc"
        file.parent.mkdir(parents=True)
        file.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 99.1, V99.1.2'\n", encoding="utf-8")
        file.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path" / "bin"))
    found = toolchain.find_nvcc()
    assert (found.name, found.version, found.where) == ("nvcc", "99.1.2", str(tmp_path / "home" / "bin" / "nvcc"))
    monkeypatch.delenv("CUDA_HOME")
    assert toolchain.find_nvcc().where == str(tmp_path / "path" / "bin" / "nvcc")
    monkeypatch.setattr(toolchain, "_packages", lambda: ("cuda-bindings 13.0.3",))
    assert toolchain.description().startswith("cuda-bindings 13.0.3, nvcc 99.1.2, --std=c++17")


def test_missing_headers_of_nvrtc_are_named(tmp_path: Path) -> None:
    include = tmp_path / "include"
    include.mkdir()
    (include / "cuda_fp16.h").touch()
    with pytest.raises(RuntimeError, match=r"found no cuda/std/cstdint, .* \(packages nvidia-cuda-cccl, nvidia-cuda-"):
        nvrtc.include_dirs([tmp_path])
    for name in ("cccl/cuda/std/cstdint", "cccl/nv/target", "crt/host_defines.h"):
        (include / name).parent.mkdir(parents=True, exist_ok=True)
        (include / name).touch()
    assert nvrtc.include_dirs([tmp_path, tmp_path / "none"]) == (str(include), str(include / "cccl"))


# --- workarounds


def test_workarounds_are_asked_for_by_the_function() -> None:
    plain, asking = row_sums()["main"], row_sums(attributes={workarounds.ATTRIBUTE: "warp memory, compiler unrolls"})
    assert workarounds.of(plain) == frozenset()
    names = workarounds.of(asking["main"])
    assert names == {workarounds.WARP_MEMORY, workarounds.COMPILER_UNROLLS}
    assert workarounds.pass_config(names)["tirx.UnrollLoop"] == {"explicit_unroll": 0}
    assert workarounds.pipeline(()) == "default"
    with pytest.raises(ValueError, match="tvm_na.cuda_workarounds: required some of .*, got magic"):
        workarounds.of(plain.with_attr(workarounds.ATTRIBUTE, "magic"))
    assert "main_kernel" in library.generated(asking, SM_90)[0]


def copies_in_warp_memory(attributes: dict[str, str]) -> Any:
    """Sums of what two other lanes of the warp have: two buffers in scope ``warp``."""
    import tvm
    from tvm import s_tir, te

    x = te.placeholder((8, 32), name="x")
    twice = te.compute((8, 32), lambda b, i: x[b, i] * 2.0, name="twice")
    thrice = te.compute((8, 32), lambda b, i: x[b, i] * 3.0, name="thrice")
    out = te.compute((8, 32), lambda b, i: twice[b, (i + 1) % 32] + thrice[b, (i + 2) % 32], name="out")
    func = te.create_prim_func([x, out]).with_attr("global_symbol", "main")
    for name, value in attributes.items():
        func = func.with_attr(name, value)
    sch = s_tir.Schedule(tvm.IRModule({"main": func}))
    block, lane = sch.get_loops(sch.get_sblock("out"))
    sch.bind(block, "blockIdx.x")
    sch.bind(lane, "threadIdx.x")
    for name in ("twice", "thrice"):
        sch.compute_at(sch.get_sblock(name), block, preserve_unit_loops=True)
        sch.set_scope(sch.get_sblock(name), 0, "warp")
        sch.bind(sch.get_loops(sch.get_sblock(name))[-1], "threadIdx.x")
    return sch.mod


def test_all_warp_memory_becomes_shuffles() -> None:
    plain = library.generated(copies_in_warp_memory({}), SM_90)[0]
    mended = library.generated(copies_in_warp_memory({workarounds.ATTRIBUTE: workarounds.WARP_MEMORY}), SM_90)[0]
    # An array of 32 is each thread's own: what it reads there no other lane has written.
    assert "thrice_warp_ptr[32]" in plain, "TVM has been mended, and the workaround may go"
    assert "warp_ptr[1];" in mended and "warp_ptr[32]" not in mended
    assert mended.count("__shfl_sync(__activemask(), ") == plain.count("__shfl_sync(__activemask(), ") + 1 == 2


# --- the cache


@needs_compiler
def test_a_kernel_is_compiled_for_a_gpu_that_is_not_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TVM_NA_CACHE_DIR", str(tmp_path))
    problem = NAProblem.make((6, 7), 3, 1, 4)
    monkeypatch.setattr(build, "_space", lambda *_: None)
    monkeypatch.setattr(build, "scheduled_module", lambda *_: (row_sums(), None))
    file = build.compile_for(problem, SM_90)
    assert file.is_file() and build.is_cached(problem, SM_90) and not build.is_cached(problem, SM_80)
    monkeypatch.setattr(build, "_build", lambda *_: pytest.fail("built again"))
    assert build.compile_for(problem, SM_90) == file
    assert [(entry.target, entry.path) for entry in cache.entries()] == [("cuda-sm_90", file)]
    listed = subprocess.run(["nm", "-D", str(file)], capture_output=True, text=True, check=True).stdout
    assert "__tvm_ffi__library_bin" in listed
