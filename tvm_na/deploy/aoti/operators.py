"""The attention of an artifact: a kernel per problem, linked into a library of operators that needs PyTorch alone."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tvm_na.compilers import cxx
from tvm_na.compilers.run import run
from tvm_na.deploy.kernels import require_a_sample, with_schedule
from tvm_na.jit import build, openmp, runtime
from tvm_na.jit.library import write_object
from tvm_na.problems.attention import NAProblem
from tvm_na.records.rejections import InapplicableError
from tvm_na.records.select import Selection
from tvm_na.targets.target import NATarget
from tvm_na.te import ENTRY

_NATIVE = Path(openmp.__file__).parent
_SOURCES = (_NATIVE / "artifact.cc", _NATIVE / "parallel.cc")
_CPP_DTYPES = {"float32": "at::kFloat", "float64": "at::kDouble"}

# What the compilers' __builtin_cpu_supports calls features that /proc/cpuinfo calls otherwise, or does not know at all
# (None): CPUs that have the others have these too.
_BUILTIN_NAMES = {"bmi1": "bmi", "sse4_2": "sse4.2", "cx16": None, "movbe": None, "f16c": None, "asimd": None}


def compile_objects(
    problems: list[NAProblem],
    target: NATarget,
    folder: Path,
    records: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> list[Selection]:
    """Compile the kernel of each problem into ``folder`` as ``kernel_<number>.o``, in their order; their schedules.

    ``records`` says which tuning records count, as for :func:`tvm_na.jit.build.kernel_for`; ``report`` is called with a
    line before each kernel.

    Raises:
        NotImplementedError: a problem has no kernel on the target.
        ValueError: a sample of a problem is too large.
    """
    selections = []
    for number, problem in enumerate(problems):
        report(f"compiling the kernel of {problem}")
        compile_object = functools.partial(_compile_object, problem, target, number, folder)
        selections.append(with_schedule(problem, target, records, compile_object))
    return selections


def _compile_object(problem: NAProblem, target: NATarget, number: int, folder: Path, selection: Selection) -> Selection:
    require_a_sample(problem.largest_batch(target.kind), problem)
    module, _ = build.scheduled_module(problem, target, selection)
    try:
        _write_object(module, target, f"na_{number}", folder / f"kernel_{number}.o")
    except Exception as error:  # TVM's errors have no class in common
        if selection.record is None:
            raise
        raise InapplicableError(f"TVM cannot compile it: {type(error).__name__}: {error}") from error
    return selection


def _write_object(module: Any, target: NATarget, name: str, file: Path) -> None:
    import tvm

    # Kernels that are linked together need names of their own.
    function = module[ENTRY].with_attr("global_symbol", name)
    compiled = tvm.compile(tvm.IRModule({name: function}), target=target.tvm_target()).mod
    if compiled.imports:
        raise AssertionError(f"a CPU's kernel came with further modules: {compiled.imports}")
    write_object(compiled, file)


def link_operators(
    problems: list[NAProblem], target: NATarget, features: tuple[str, ...], folder: Path, library: Path
) -> str:
    """Link the objects in ``folder`` (see :func:`compile_objects`) into a library of operators; their namespace.

    Libraries of other code have another namespace.

    Raises:
        RuntimeError: there is no C++ compiler, or it fails.
    """
    (folder / "kernels.inc").write_text(_table(problems, features), encoding="utf-8")
    objects = [folder / f"kernel_{number}.o" for number in range(len(problems))]
    digest = hashlib.sha256()
    for file in (*_SOURCES, folder / "kernels.inc", *objects):
        digest.update(file.read_bytes())
    namespace = f"tvm_na_{digest.hexdigest()[:16]}"
    # Nothing but one function leaves the library: another artifact in the process has kernels of the same names.
    version_script = folder / "exports.map"
    version_script.write_text("{ global: tvm_na_missing_feature; local: *; };\n", encoding="utf-8")
    command = _compile_command(folder, namespace, [*_SOURCES, *objects], library)
    command.append(f"-Wl,--version-script={version_script}")
    run(command, library)
    return namespace


def _compile_command(folder: Path, namespace: str, inputs: list[Path], library: Path) -> list[str]:
    import torch
    import tvm_ffi.libinfo
    from torch.utils import cpp_extension

    includes = [folder, *cpp_extension.include_paths("cpu"), tvm_ffi.libinfo.find_include_path()]
    includes.append(tvm_ffi.libinfo.find_dlpack_include_path())
    abi = int(torch.compiled_with_cxx11_abi())
    flags = ["-std=c++20", "-O2", "-shared", "-fPIC", "-fvisibility=hidden"]
    macros = [f"-DTVM_NA_NAMESPACE={namespace}", f"-D_GLIBCXX_USE_CXX11_ABI={abi}"]
    # No run path: it runs with the PyTorch of whoever loads it. No symbol may stay open: TVM's would be found nowhere.
    paths = [*(f"-I{path}" for path in includes), *(f"-L{path}" for path in cpp_extension.library_paths("cpu"))]
    libraries = ["-Wl,-z,defs", "-ltorch_cpu", "-lc10", "-lm", "-ldl"]
    return [*cxx.command(), *flags, *macros, *paths, *map(str, inputs), "-o", str(library), *libraries]


def _table(problems: list[NAProblem], features: tuple[str, ...]) -> str:
    """The C++ that says which kernels there are, and what CPU they need."""
    kernels = (
        f"X({number}, {p.rank + 3}, {p.head_dim_v}, {_CPP_DTYPES[p.dtype]}, {p.useful_flops}, "
        f'{p.largest_batch("llvm")}, "{p}")'
        for number, p in enumerate(problems)
    )
    names = (_BUILTIN_NAMES.get(feature, feature) for feature in features)
    checks = (f'X("{name}")' for name in names if name is not None)
    return "\n".join(
        [
            f"constexpr int64_t kFlopsPerThread = {runtime.FLOPS_PER_THREAD};",
            f"#define TVM_NA_KERNELS(X) {' '.join(kernels)}",
            f"#define TVM_NA_REQUIRED_FEATURES(X) {' '.join(checks)}",
            "",
        ]
    )
