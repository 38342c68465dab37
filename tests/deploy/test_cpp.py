"""The programs in C++ that run artifacts, with PyTorch and without: built, and run as their files say."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tvm_na
from tests.deploy.artifacts import SIZE, Made, add_expected, seal
from tvm_na.deploy import manifest
from tvm_na.models import registry
from tvm_na.models.preprocessing import to_tensor

ROOT = Path(__file__).parents[2]
HEADER = f"P6\n{SIZE} {SIZE}\n255\n".encode()

Classify = Callable[..., "subprocess.CompletedProcess[str]"]

pytestmark = pytest.mark.slow


def built(folder: Path, example: str, *options: str) -> Classify:
    """What runs the program of an example, which is built by CMake without a warning in our files."""
    missing = [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"{example} needs {' and '.join(missing)}")
    for command in (["cmake", "-S", ROOT / "examples" / example, "-B", folder, *options], ["cmake", "--build", folder]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not re.search(rf"examples/{example}/.*warning", done.stderr), done.stderr

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([folder / "classify", *map(str, arguments)], capture_output=True, text=True)

    return run


@pytest.fixture(scope="module")
def classify(tmp_path_factory: pytest.TempPathFactory) -> Classify:
    """Runs the program without PyTorch."""
    config = [sys.executable, "-m", "tvm_ffi.config", "--cmakedir"]
    package = subprocess.run(config, check=True, capture_output=True, text=True).stdout.strip()
    # The same Python as ours: the package asks it where the headers are.
    options = [f"-Dtvm_ffi_ROOT={package}", f"-DPython_EXECUTABLE={sys.executable}", "-DCMAKE_CXX_FLAGS=-Wall -Wextra"]
    return built(tmp_path_factory.mktemp("cpp_tvm"), "cpp_tvm", *options)


def files_in(folder: Path) -> None:
    """Pictures and what are none, for both programs."""
    pixels = torch.randint(0, 256, (SIZE, SIZE, 3), dtype=torch.uint8)
    (folder / "image.ppm").write_bytes(HEADER + bytes(pixels.flatten().tolist()))
    (folder / "cut.ppm").write_bytes(HEADER + b"0")
    (folder / "classes.txt").write_text("cat\n")
    (folder / "large.ppm").write_bytes(b"P6\n1 1\n255\n000")


def classes_in(text: str) -> list[tuple[int, float]]:
    return [(int(number), float(percent)) for number, percent in re.findall(r"class +(\d+) +([\d.]+)%", text)]


def assert_classifies(classify: Classify, path: Path, folder: Path) -> None:
    """The five classes of an image are those that Python finds."""
    files_in(folder)
    image = pytest.importorskip("PIL.Image").open(folder / "image.ppm")
    right = tvm_na.load(path)(to_tensor(image, registry.IMAGENET_224)[None])[0].softmax(-1).topk(5)
    done = classify(path, folder / "image.ppm")
    assert done.returncode == 0, done.stderr
    found = classes_in(done.stdout)
    assert [number for number, _ in found] == right.indices.tolist()
    assert [percent for _, percent in found] == pytest.approx((100 * right.values).tolist(), abs=0.006)


def test_an_image_has_the_classes_that_python_finds(classify: Classify, tvm: Made, tmp_path: Path) -> None:
    assert_classifies(classify, tvm.path, tmp_path)


def test_the_program_with_pytorch(aoti: Made, tmp_path: Path) -> None:
    classify = built(tmp_path / "build", "cpp", f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}")
    assert_classifies(classify, aoti.path, tmp_path)
    for arguments, says in (
        ((aoti.path, tmp_path / "cut.ppm"), "required more pixels"),
        ((aoti.path, tmp_path / "classes.txt"), "required a binary PPM"),
        ((aoti.path, "noise", 2 * SIZE), f"expected: {SIZE}, but got: {2 * SIZE}"),
        ((tmp_path, tmp_path / "image.ppm"), "operators.so"),
    ):
        done = classify(*arguments)
        assert (done.returncode, says in done.stderr) == (1, True), done.stderr
    assert classify(aoti.path).returncode == 2


def test_noise(classify: Classify, tvm: Made) -> None:
    done = classify(tvm.path, "noise", SIZE)
    assert done.returncode == 0, done.stderr
    assert len(classes_in(done.stdout)) == 5


def test_a_process_without_pytorch(classify: Classify, tvm: Made) -> None:
    """Nothing of PyTorch's, of Python's or of TVM's compiler is linked or comes in the artifact."""
    if shutil.which("ldd") is None:
        pytest.skip("test_a_process_without_pytorch needs ldd")
    program = Path(classify(tvm.path).args[0])
    for file in (program, tvm.path / "model.so"):
        lines = subprocess.run(["ldd", file], check=True, capture_output=True, text=True).stdout.splitlines()
        libraries = " ".join(line.split()[0] for line in lines)  # their names without their folders
        assert not re.search(r"torch|python|tvm_compiler|libc10", libraries), libraries


@pytest.mark.parametrize(("wrong_by", "code", "says"), [(0.0, 0, "right"), (1e-3, 1, "WRONG"), (float("nan"), 1, "")])
def test_check(classify: Classify, tvm_copy: Path, wrong_by: float, code: int, says: str) -> None:
    """Right outputs, one that is off by ten times the budget, and one with which nothing can be compared."""
    add_expected(tvm_copy, wrong_by)
    done = classify(tvm_copy, "check")
    assert (done.returncode, says in done.stdout) == (code, True), done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("cut.ppm",), "required more pixels"),
        (("classes.txt",), "required a binary PPM"),
        (("none.ppm",), "required a binary PPM"),
        (("large.ppm",), f"required contiguous, aligned float32 [batch, 3, {SIZE}, {SIZE}], got float32 [1, 3, 1, 1]"),
        (("noise", "x"), "SIZE: required a positive number"),
        (("noise", 2 * SIZE), f"got float32 [1, 3, {2 * SIZE}, {2 * SIZE}]"),
        (("check",), "expected.safetensors"),
    ],
)
def test_wrong_arguments(
    classify: Classify, tvm: Made, tmp_path: Path, arguments: tuple[object, ...], says: str
) -> None:
    files_in(tmp_path)
    first, *rest = arguments
    done = classify(tvm.path, tmp_path / str(first) if "." in str(first) else first, *rest)
    assert (done.returncode, says in done.stderr) == (1, True), done.stderr


def test_usage(classify: Classify, tvm: Made) -> None:
    assert classify(tvm.path).returncode == classify().returncode == 2


# --- damaged artifacts, and those of other machines


def with_target(folder: Path, **changes: object) -> None:
    seal(folder, target={**manifest.read_manifest(folder).target, **changes})


def cut(folder: Path, name: str, seal_it: bool) -> None:
    """Take the last 100 bytes of a file; the manifest names the new size if it is sealed again."""
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-100])
    if seal_it:
        seal(folder)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda f: (f / "manifest.json").unlink(), "required a folder with a manifest.json"),
        (lambda f: (f / "manifest.json").write_text("{"), "required a JSON object"),
        (lambda f: (f / "manifest.json").write_text("[]"), "required a JSON object"),
        (lambda f: (f / "manifest.json").write_text("{}"), "required the field format"),
        (lambda f: with_target(f, architecture="riscv64"), "required the architecture riscv64, got "),
        (lambda f: with_target(f, cpu_features=["warp"]), "required CPU features that this program knows, got warp"),
        (lambda f: seal(f, requires={"apache-tvm-ffi": "9.1.2"}), "required libtvm_ffi 9.1.2"),
        (lambda f: (f / "model.so").unlink(), "model.so: required a file of "),
        (lambda f: cut(f, "weights.safetensors", False), " bytes, got "),
        (lambda f: cut(f, "weights.safetensors", True), "weights.safetensors: required a safetensors file"),
        (lambda f: (f / "weights.safetensors").write_bytes(b"\xff" * 64) and seal(f), "required a header inside"),
        (lambda f: (f / "model.so").write_bytes(b"no library") and seal(f), "model.so"),
        (lambda f: (f / "libtvm_runtime.so").write_bytes(b"none") and seal(f), "libtvm_runtime.so"),
        (lambda f: seal(f, preprocessing=None), "required a classifier of images"),
        (lambda f: seal(f, kind="aoti", code={"namespace": ""}), "required an artifact of the format tvm, got aoti"),
    ],
)
def test_damaged_artifacts(classify: Classify, tvm_copy: Path, damage: Callable[[Path], object], says: str) -> None:
    damage(tvm_copy)
    done = classify(tvm_copy, "noise", SIZE)
    assert (done.returncode, says in done.stderr) == (1, True), done.stderr
    assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
