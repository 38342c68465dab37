"""From a scheduled IRModule to a shared library with host code and device code, on machines with and without a GPU.

TVM generates both codes. It would have its CUDA runtime compile the device code, which cannot be loaded where there is
no driver; TVM then leaves the source in the library, without a word, for whoever loads it to compile. So TVM is always
told to leave the source, we compile it, with flags of ours, and put the result where the source was.
"""

from __future__ import annotations

import os
import re
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any, TypeVar

from tvm_na.cuda import fatbin, late, names, toolchain, workarounds
from tvm_na.cuda.inspection import resources_of
from tvm_na.cuda.limits import Resources, Sizes, check_least_registers, check_resources, check_sizes
from tvm_na.targets.target import NATarget

S = TypeVar("S", Sizes, Resources)

_environment = threading.Lock()


@dataclass(frozen=True)
class CudaLibrary:
    """A kernel that is compiled, but on no disk yet.

    Attributes:
        source: The CUDA C++ that TVM generated.
        image: What was made of it: a fatbin (or a cubin, see :class:`tvm_na.cuda.toolchain.Nvrtc`).
        arch: The architecture it is for, such as ``sm_90``.
        sizes: Threads and shared memory of a block; of several device functions, the most that any has.
        resources: Registers and spills of a thread; of several, the most.
        host: TVM's module of host code, which imports the device code.
    """

    source: str
    image: bytes
    arch: str
    sizes: Sizes
    resources: Resources
    host: Any

    def packed(self, host: Any) -> Any:
        """The device code that ``host`` imports, compiled, as a module that can be written as an object file.

        Raises:
            RuntimeError: TVM packs device code in another way than the one known here.
        """
        import tvm

        packed = tvm.get_global_func("runtime.ModulePackImportsToTensor")(host).numpy().tobytes()
        kind = "fatbin" if len(fatbin.parts_of(self.image)) > 1 else "cubin"
        code = with_code(packed, self.source.encode(), kind, self.image)
        triple = host.get_function("_get_target_string")()
        return tvm.get_global_func("codegen.codegen_blob")(code, False, triple, "")


def compile_library(module: Any, target: NATarget, ptx: bool = True) -> CudaLibrary:
    """Compile a scheduled IRModule (seconds; imports TVM).

    Args:
        module: An IRModule with a scheduled PrimFunc ``main``, whose loops are bound to blocks and threads.
        target: A CUDA target; the device need not be here.
        ptx: Whether PTX comes with the machine code, where the compiler can join them: newer devices run it too.

    Raises:
        UnlaunchableError: no GPU of the target can launch it; known before the CUDA compiler runs, but for
            most registers.
        RuntimeError: there is no CUDA compiler, it fails, or the kernel is one that cannot be launched by PyTorch's
            rules: it needs memory of its own.
    """
    compiler = toolchain.find_compiler()
    module = late.written(module)
    host, sizes = _lowered(module, target)
    for of_one in sizes.values():
        check_sizes(of_one, target)
        for func in module.functions.values():
            check_least_registers(func, of_one, target)
    source = _source_of(host)
    image, log = compiler.compile(source, target.arch, ptx)
    fatbin.require_cubin(image, target.arch)
    resources = resources_of(log)
    for name, of_one in sizes.items():
        check_resources(resources[name], of_one, target)
    return CudaLibrary(source, image, target.arch, _most(sizes), _most(resources), host)


def generated(module: Any, target: NATarget) -> tuple[str, Sizes]:
    """What TVM makes of a scheduled IRModule: CUDA C++, and the sizes of a block (imports TVM; needs no compiler)."""
    host, sizes = _lowered(late.written(module), target)
    return _source_of(host), _most(sizes)


def _most(found: Mapping[str, S]) -> S:
    """The most that any of several device functions has, of each kind."""
    values = list(found.values())
    return type(values[0])(*map(max, *map(astuple, values))) if len(values) > 1 else values[0]


def _lowered(module: Any, target: NATarget) -> tuple[Any, dict[str, Sizes]]:
    """The host code of a module, with the device code as source imported to it, and the sizes of a block of each
    device function, by its name."""
    import tvm

    needed = frozenset[str]().union(*(workarounds.of(func) for func in module.functions.values()))
    # The CUDA compiler finds common subexpressions itself; TVM would make arguments of those of the batch.
    config = {"tirx.disable_cse_tir": True, **workarounds.pass_config(needed)}
    shared: dict[str, dict[str, int]] = {}
    context = tvm.transform.PassContext(opt_level=3, config=config, instruments=[_shared_memory(shared)])
    with context, _device_code_as_source():
        pipeline = names.pipeline_with_entry(workarounds.pipeline(needed))
        host = tvm.tirx.build(names.named(module), target=target.tvm_target(), pipeline=pipeline)
    if "TVMBackendAllocWorkspace" in host.inspect_source("ll"):
        # Taken from a pool that knows nothing of streams, by cudaMalloc, which no CUDA graph can capture.
        raise RuntimeError("kernel: required one without global memory of its own, got one that allocates a workspace")
    bounds = re.findall(r"__launch_bounds__\((\d+)\)\s+(\w+)", _source_of(host))
    threads = {name: int(count) for count, name in bounds}  # a block of one thread has none
    if not shared or not threads.keys() <= shared.keys():
        got = f"{', '.join(shared) or 'none'}, numbers of threads of {', '.join(threads) or 'none'}"
        raise RuntimeError(f"kernel: required device functions and their numbers of threads, got {got}")
    sizes = {
        name: Sizes(threads.get(name, 1), of_scope.get("shared", 0), of_scope.get("shared.dyn", 0))
        for name, of_scope in shared.items()
    }
    return host, sizes


def _shared_memory(found: dict[str, dict[str, int]]) -> Any:
    """An instrument that adds to ``found``, for each device function, the bytes that it allocates, by scope."""
    import tvm
    from tvm import s_tir

    @tvm.ir.instrument.pass_instrument
    class Watch:
        def run_after_pass(self, module: Any, info: Any) -> None:
            if info.name == "tirx.SplitHostDevice":
                functions = [f for f in module.functions.values() if "tirx.kernel_launch_params" in f.attrs]
                for function in functions:
                    (by_scope,) = s_tir.analysis.calculate_allocated_bytes(function).values()
                    name = str(function.attrs["global_symbol"])
                    found[name] = {str(scope): int(count) for scope, count in by_scope.items()}

    return Watch()


@contextmanager
def _device_code_as_source() -> Iterator[None]:
    """Have TVM leave CUDA C++ as it is. The switch is an environment variable: nothing else is heard by TVM."""
    name = "TVM_COMPILE_FORCE_FALLBACK"
    with _environment:
        before = os.environ.get(name)
        os.environ[name] = "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


def _source_of(host: Any) -> str:
    imported = [module for module in host.imports if module.kind == "cuda"]
    if len(imported) != 1 or len(host.imports) != 1:
        got = ", ".join(module.kind for module in host.imports) or "none"
        raise RuntimeError(f"kernel: required one module of CUDA code (loops bound to blocks and threads), got {got}")
    return str(imported[0].inspect_source("cuda"))


class _Reader:
    """Reads what TVM's streams write: numbers of 64 bits, strings with their length in front."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def number(self) -> int:
        (value,) = struct.unpack_from("<Q", self.data, self.at)
        self.at += 8
        return int(value)

    def string(self) -> bytes:
        size = self.number()
        self.at += size
        if self.at > len(self.data):
            raise struct.error("a string ends behind the data")
        return self.data[self.at - size : self.at]

    def numbers(self) -> list[int]:
        return [self.number() for _ in range(self.number())]


def _string(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def with_code(packed: bytes, source: bytes, kind: str, image: bytes) -> bytes:
    """Packed modules with the source of the one CUDA module replaced by compiled code.

    The layout is that of tvm_ffi's ``library_module.cc``: the size of all that follows; the tree of imports as two
    lists of numbers; of each module its kind and, but for ``_lib``, its content. The content of a CUDA module (TVM's
    ``cuda_module.cc``) is the kind of its code, a table of its functions, and the code.

    Args:
        packed: What TVM packs.
        source: The code it must contain, as kind ``cuda``.
        kind: The kind of the new code: ``fatbin`` or ``cubin``.
        image: The new code.

    Raises:
        RuntimeError: ``packed`` looks otherwise.
    """
    try:
        reader = _Reader(packed)
        size = reader.number()
        reader.numbers()
        reader.numbers()
        found, replaced = packed[8 : reader.at], 0
        while reader.at < len(packed):
            module = reader.string()
            found += _string(module)
            if module == b"_lib":
                continue
            content, cuda, code = reader.string(), _string(b"cuda"), _string(source)
            if module != b"cuda" or not (content.startswith(cuda) and content.endswith(code)):
                raise struct.error(f"an unexpected module of kind {module!r}")
            table = content[len(cuda) : -len(code)]
            found += _string(_string(kind.encode()) + table + _string(image))
            replaced += 1
        if replaced != 1 or size != len(packed) - 8:
            raise struct.error(f"{replaced} CUDA modules in {size} of {len(packed)} bytes")
    except struct.error as error:
        raise RuntimeError(f"packed modules: required the layout of TVM 0.27, got {error}") from error
    return _string(found)
