"""Artifacts for other CPUs than this one: built, looked at, refused here; AArch64's run by qemu-aarch64.

The latter needs the folder that examples/cpp_tvm/aarch64_root.sh makes, named by TVM_NA_AARCH64_ROOT.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tvm_na
from tests.cli.invoking import invoke
from tests.deploy.artifacts import LIMIT, SIZE, Made, add_expected, for_target, once, seal, small_model
from tests.helpers import ROOT, relative_error
from tvm_na.deploy import manifest
from tvm_na.deploy.relax import linker
from tvm_na.targets.target import cpu_features, missing_features, parse_target

#: Where the C library, libstdc++, libtvm_ffi and libtvm_runtime for AArch64 are, in lib/.
ROOT_VARIABLE = "TVM_NA_AARCH64_ROOT"
_ROOT_FILES = ("ld-linux-aarch64.so.1", "libc.so.6", "libstdc++.so.6", "libtvm_ffi.so", "libtvm_runtime.so")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="test_deploy_cross needs an x86-64 machine"),
]


@pytest.fixture(scope="session")
def aarch64(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """An artifact for AArch64."""
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("test_deploy_cross needs ziglang for AArch64: pip install 'tvm_na[cross]'")
    return once(tmp_path_factory, "aarch64", for_target("llvm-aarch64-neon"))


@pytest.fixture(scope="session")
def avx512(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """An artifact for AVX-512."""
    return once(tmp_path_factory, "avx512", for_target("llvm-x86-avx512"))


@pytest.fixture(scope="session")
def sse4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact for SSE4, which every machine that these tests are for can run."""
    return once(tmp_path_factory, "sse4", for_target("llvm-x86-sse4")).path


def output_of(*command: object) -> str:
    if shutil.which(str(command[0])) is None:
        pytest.skip(f"test_deploy_cross needs {command[0]}")
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout


def undefined(library: Path) -> set[str]:
    """Names that a library wants from others, with their versions, without those that may be missing."""
    rows = (row.split() for row in output_of("readelf", "-W", "--dyn-syms", library).splitlines())
    return {row[7] for row in rows if len(row) >= 8 and row[4] == "GLOBAL" and row[6] == "UND"}


# --- what is built


def test_aarch64_library_needs_the_c_library_alone(aarch64) -> None:
    library = aarch64.path / manifest.LIBRARY
    text = output_of("readelf", "-hdW", library)
    assert re.search(r"Machine: +AArch64", text)
    assert set(re.findall(r"NEEDED.*\[(.+?)\]", text)) <= {"libc.so.6", "libm.so.6", "ld-linux-aarch64.so.1"}
    assert not re.search("SONAME|RPATH|RUNPATH", text)
    for name in undefined(library):
        version = re.search(r"@GLIBC_2\.(\d+)$", name)
        assert name.startswith("TVMFFI") or (version and int(version[1]) <= int(linker.GLIBC.split(".")[1])), name


def test_aarch64_library_computes_in_vectors(aarch64) -> None:
    """It has "fmla v.4s", of vectors or of one with an element, by the bits that the architecture gives them."""
    content = (aarch64.path / manifest.LIBRARY).read_bytes()
    words = np.frombuffer(content[: len(content) // 4 * 4], "<u4")
    of_vectors, by_element = (words & 0xFFE0FC00) == 0x4E20CC00, (words & 0xFFC0F400) == 0x4F801000
    assert (of_vectors | by_element).sum() > 500


def test_avx512_library_computes_in_vectors(avx512) -> None:
    library = avx512.path / manifest.LIBRARY
    code = output_of("objdump", "-d", "--no-show-raw-insn", library)
    whole, half = (len(re.findall(rf"\svfn?madd\S+ .*%{register}", code)) for register in ("zmm", "ymm"))
    assert whole > 500 and whole > 5 * half
    assert not any("exp" in name or "erf" in name for name in undefined(library))


def test_sse4_library_has_nothing_newer(sse4) -> None:
    assert not re.search("%[yz]mm", output_of("objdump", "-d", "--no-show-raw-insn", sse4 / manifest.LIBRARY))


def test_without_a_linker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(linker.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match=r"to link for aarch64: required the package ziglang \(pip install"):
        for_target("llvm-aarch64-neon")(tmp_path / "x.artifact")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", ["llvm-x86-sse4", "llvm-aarch64-neon"])
def test_what_cannot_be_linked(tmp_path: Path, target: str) -> None:
    if target == "llvm-aarch64-neon" and importlib.util.find_spec("ziglang") is None:
        pytest.skip(f"test_what_cannot_be_linked[{target}] needs ziglang: pip install 'tvm_na[cross]'")
    (tmp_path / "lib.o").write_bytes(b"no object")
    with pytest.raises(RuntimeError, match="the linker failed:\n.*lib"):
        linker.linker_for(parse_target(target))(str(tmp_path / "lib.so"), [tmp_path / "lib.o"])


# --- what runs here


@pytest.mark.parametrize(
    ("which", "says"),
    [
        ("aarch64", "required the architecture aarch64, got x86_64"),
        ("avx512", "llvm-x86-avx512, got one without avx512"),
    ],
)
def test_what_cannot_run_here_is_not_checked_and_refused(request: pytest.FixtureRequest, which: str, says: str) -> None:
    """It says so; and it is refused by an error, before any of its code is loaded."""
    if which == "avx512" and not missing_features(cpu_features(parse_target("llvm-x86-avx512"))):
        pytest.skip("test_what_cannot_run_here_is_not_checked_and_refused[avx512] needs a CPU without AVX-512")
    made = request.getfixturevalue(which)
    found = manifest.read_manifest(made.path)
    assert any(text.startswith("NOT CHECKED") for text in made.said)
    assert found.check == {"budget": LIMIT} and manifest.EXPECTED in found.files
    assert (manifest.RUNTIME in found.files) == (which == "avx512")  # for this machine's kind TVM's runtime is at hand
    with pytest.raises(ValueError, match=says):
        tvm_na.load(made.path)
    assert says in invoke("check", made.path, code=1).stderr
    assert str(made.path) not in Path("/proc/self/maps").read_text()


def test_sse4_artifact_gives_what_the_model_gives(sse4: Path) -> None:
    model = small_model(levels=1)
    for batch in (1, 3):
        images = torch.randn(batch, 3, SIZE, SIZE)
        with torch.no_grad():
            assert relative_error(tvm_na.load(sse4)(images), model(images)) <= LIMIT


# --- tvm-na check


def test_check_of_an_artifact_that_was_checked(sse4: Path) -> None:
    said = invoke("check", sse4).stdout
    assert all(part in said for part in ("random numbers", "finite", "llvm-x86-sse4", f"[2, 3, {SIZE}, {SIZE}]"))


def test_check_of_an_artifact_from_elsewhere(sse4: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(sse4, tmp_path / "copy"))
    add_expected(path, levels=1)
    said = invoke("check", path).stdout
    assert "right: relative error" in said and manifest.EXPECTED in said
    for wrong_by in (1e-3, float("nan")):
        add_expected(path, wrong_by, levels=1)
        error = invoke("check", path, code=1).stderr
        assert "outputs: required those of expected.safetensors within 1e-04" in error


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: shutil.rmtree(path), "required an existing folder"),
        (lambda path: (path / manifest.LIBRARY).write_bytes(b""), "bytes, got 0"),
        (lambda path: (path / "more").write_bytes(b""), "got also more"),
        (lambda path: (path / manifest.RUNTIME).unlink(), "got none"),
        (lambda path: (path / manifest.EXPECTED).write_bytes(b"x" * 9) and seal(path), "required a safetensors file"),
        (lambda path: (path / manifest.LIBRARY).write_bytes(b"x") and seal(path), "model.so"),
    ],
)
def test_check_of_damaged_artifacts(sse4: Path, tmp_path: Path, damage, says: str) -> None:
    path = Path(shutil.copytree(sse4, tmp_path / "copy"))
    damage(path)
    assert says in invoke("check", path, code=1).stderr


# --- AArch64, emulated


def aarch64_root(test: str) -> Path:
    """The folder that ``ROOT_VARIABLE`` names; skips ``test`` where something is missing."""
    if shutil.which("qemu-aarch64") is None:
        pytest.skip(f"{test} needs qemu-aarch64")
    named = os.environ.get(ROOT_VARIABLE)
    if not named:
        pytest.skip(f"{test} needs {ROOT_VARIABLE}, a folder that examples/cpp_tvm/aarch64_root.sh makes")
    root = Path(named).absolute()
    missing = [file for file in _ROOT_FILES if not (root / "lib" / file).exists()]
    if missing:
        pytest.skip(f"{test} needs {', '.join(missing)} in {root / 'lib'}")
    return root


def test_aarch64_artifact_runs_under_qemu(aarch64, tmp_path: Path) -> None:
    """The program of examples/cpp_tvm finds its outputs right, and the same ones wrong where others are expected."""
    root = aarch64_root("test_aarch64_artifact_runs_under_qemu")
    path = Path(shutil.copytree(aarch64.path, tmp_path / "copy"))
    shutil.copyfile(root / "lib" / manifest.RUNTIME, path / manifest.RUNTIME)
    seal(path)
    include = output_of(sys.executable, "-m", "tvm_ffi.config", "--includedir").strip()
    compiler = [sys.executable, "-m", "ziglang", "c++", "-target", f"aarch64-linux-gnu.{linker.GLIBC}", "-std=c++17"]
    source, program = ROOT / "examples" / "cpp_tvm" / "classify.cc", tmp_path / "classify"
    done = subprocess.run(
        [*compiler, f"-I{include}", source, f"-L{root / 'lib'}", "-ltvm_ffi", "-ldl", "-o", program],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr

    def classify(*arguments: object) -> subprocess.CompletedProcess[str]:
        emulator = ["qemu-aarch64", "-L", root, "-E", f"LD_LIBRARY_PATH={root / 'lib'}"]
        return subprocess.run([*emulator, program, path, *map(str, arguments)], capture_output=True, text=True)

    done = classify("check")
    assert (done.returncode, "right" in done.stdout) == (0, True), done.stdout + done.stderr
    done = classify("noise", SIZE)
    assert (done.returncode, done.stdout.count("class")) == (0, 5), done.stderr
    add_expected(path, wrong_by=1e-3, levels=1)
    done = classify("check")
    assert (done.returncode, "WRONG" in done.stdout) == (1, True), done.stdout + done.stderr
