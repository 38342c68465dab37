"""The kernels of an artifact, one per problem, linked into a library of operators that needs PyTorch alone."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tvm_na.compilers import cxx
from tvm_na.compilers.run import run
from tvm_na.deploy.kernels import require_a_sample, with_schedule
from tvm_na.jit import build, openmp
from tvm_na.jit.library import write_object
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.dense import DenseProblem
from tvm_na.records.rejections import InapplicableError
from tvm_na.records.select import Selection
from tvm_na.targets.target import NATarget
from tvm_na.targets.threads import FLOPS_PER_THREAD
from tvm_na.te import ENTRY
from tvm_na.te.dense.product import DenseTile, packed_dtype, tile_of

P = TypeVar("P", NAProblem, DenseProblem)

_NATIVE = Path(openmp.__file__).parent
_SOURCES = (_NATIVE / "artifact.cc", _NATIVE / "parallel.cc")
_CPP_DTYPES = {
    **{"float32": "at::kFloat", "float64": "at::kDouble", "int8": "at::kChar"},
    **{"bfloat16": "at::kBFloat16", "float16": "at::kHalf", "int32": "at::kInt"},
}

# What the compilers' __builtin_cpu_supports calls features that /proc/cpuinfo calls otherwise, or does not know at all
# (None): CPUs that have the others have these too.
_BUILTIN_NAMES = {"bmi1": "bmi", "sse4_2": "sse4.2", "cx16": None, "movbe": None, "f16c": None, "asimd": None}


@dataclass(frozen=True)
class Kernel:
    """A kernel of an artifact, compiled.

    Attributes:
        number: By which its operator calls it: that of attention, or ``dense``, which number theirs apart.
        tile: How the weights of a product are packed; None for attention.
        file: The object, with a function :attr:`name`.
    """

    problem: NAProblem | DenseProblem
    number: int
    selection: Selection
    tile: DenseTile | None
    file: Path

    @property
    def name(self) -> str:
        """Of its function, unique in the library."""
        return _name_of(self.problem, self.number)


def _name_of(problem: NAProblem | DenseProblem, number: int) -> str:
    return f"{'dense' if isinstance(problem, DenseProblem) else 'na'}_{number}"


def compile_objects(
    problems: Sequence[NAProblem | DenseProblem],
    target: NATarget,
    folder: Path,
    records: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> list[Kernel]:
    """Compile the kernel of each problem, an attention or a linear layer, into an object in ``folder``; in their order.

    ``records`` says which tuning records count, as for :func:`tvm_na.jit.build.kernel_for`; ``report`` is called with a
    line before each kernel.

    Raises:
        NotImplementedError: a problem has no kernel on the target.
        ValueError: a sample of a problem is too large.
    """
    kernels: list[Kernel] = []
    for problem in problems:
        report(f"compiling the kernel of {problem}")
        number = sum(type(kernel.problem) is type(problem) for kernel in kernels)
        compile_object = functools.partial(_compile_object, problem, target, number, folder)
        kernels.append(with_schedule(problem, target, records, compile_object))
    return kernels


def _compile_object(
    problem: NAProblem | DenseProblem, target: NATarget, number: int, folder: Path, selection: Selection
) -> Kernel:
    require_a_sample(problem.largest_batch(target.kind), problem)
    module, _ = build.scheduled_module(problem, target, selection)
    tile = tile_of(module[ENTRY]) if isinstance(problem, DenseProblem) else None
    name = _name_of(problem, number)
    kernel = Kernel(problem, number, selection, tile, folder / f"{name}.o")
    try:
        _write_object(module, target, name, kernel.file)
    except Exception as error:  # TVM's errors have no class in common
        if selection.record is None:
            raise
        raise InapplicableError(f"TVM cannot compile it: {type(error).__name__}: {error}") from error
    return kernel


def _write_object(module: Any, target: NATarget, name: str, file: Path) -> None:
    import tvm

    # Kernels that are linked together need names of their own.
    function = module[ENTRY].with_attr("global_symbol", name)
    compiled = tvm.compile(tvm.IRModule({name: function}), target=target.tvm_target()).mod
    if compiled.imports:
        raise AssertionError(f"a CPU's kernel came with further modules: {compiled.imports}")
    write_object(compiled, file)


def link_operators(kernels: Sequence[Kernel], features: tuple[str, ...], folder: Path, library: Path) -> str:
    """Link kernels into a library of operators, with intermediate files in ``folder``; their namespace.

    Libraries of other code have another namespace.

    Raises:
        RuntimeError: there is no C++ compiler, or it fails.
    """
    (folder / "kernels.inc").write_text(_table(kernels, features), encoding="utf-8")
    objects = [kernel.file for kernel in kernels]
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


def _table(kernels: Sequence[Kernel], features: tuple[str, ...]) -> str:
    """The C++ that says which kernels there are, and what CPU they need."""
    attentions = [f"X({k.name}, {_common(k)}, {p.rank + 3}, {p.head_dim_v})" for k, p in _of_kind(kernels, NAProblem)]
    products = [
        f"X({k.name}, {_common(k)}, {_CPP_DTYPES[packed_dtype(p)]}, {_sizes(*p.spatial, p.in_channels)}, "
        f"{_sizes(*p.out_spatial, p.out_channels)})"
        for k, p in _of_kind(kernels, DenseProblem)
    ]
    names = (_BUILTIN_NAMES.get(feature, feature) for feature in features)
    checks = (f'X("{name}")' for name in names if name is not None)
    return "\n".join(
        [
            f"constexpr int64_t kFlopsPerThread = {FLOPS_PER_THREAD};",
            f"#define TVM_NA_ATTENTIONS(X) {' '.join(attentions)}",
            f"#define TVM_NA_PRODUCTS(X) {' '.join(products)}",
            f"#define TVM_NA_REQUIRED_FEATURES(X) {' '.join(checks)}",
            "",
        ]
    )


def _of_kind(kernels: Sequence[Kernel], kind: type[P]) -> list[tuple[Kernel, P]]:
    return [(kernel, kernel.problem) for kernel in kernels if isinstance(kernel.problem, kind)]


def _sizes(*sizes: int) -> str:
    return f"(Sizes{{{', '.join(map(str, sizes))}}})"


def _common(kernel: Kernel) -> str:
    p = kernel.problem
    return f'{_CPP_DTYPES[p.dtype]}, {p.useful_flops}, {p.largest_batch("llvm")}, "{p}"'
