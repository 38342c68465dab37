"""From a scheduled IRModule to a shared library with host code and device code, on machines with and without a GPU.

TVM generates both codes. It would have its CUDA runtime compile the device code, which cannot be loaded where there is
no driver; TVM then leaves the source in the library, without a word, for whoever loads it to compile. So TVM is always
told to leave the source (``lowering.py``), we compile it, with flags of ours, and put the result where the source was.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any, TypeVar

from tvm_na.cuda import fatbin, late, toolchain
from tvm_na.cuda.inspection import resources_of
from tvm_na.cuda.limits import Resources, Sizes, check_least_registers, check_resources, check_sizes
from tvm_na.cuda.lowering import lowered
from tvm_na.targets.target import NATarget

S = TypeVar("S", Sizes, Resources)


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
    code = lowered(module, target)
    for of_one in code.sizes.values():
        check_sizes(of_one, target)
        for func in module.functions.values():
            check_least_registers(func, of_one, target)
    image, log = compiler.compile(code.source, target.arch, ptx)
    fatbin.require_cubin(image, target.arch)
    resources = resources_of(log)
    for name, of_one in code.sizes.items():
        check_resources(resources[name], of_one, target)
    return CudaLibrary(code.source, image, target.arch, _most(code.sizes), _most(resources), code.host)


def generated(module: Any, target: NATarget) -> tuple[str, Sizes]:
    """What TVM makes of a scheduled IRModule: CUDA C++, and the sizes of a block (imports TVM; needs no compiler)."""
    found = lowered(late.written(module), target)
    return found.source, _most(found.sizes)


def _most(found: Mapping[str, S]) -> S:
    """The most that any of several device functions has, of each kind."""
    values = list(found.values())
    return type(values[0])(*map(max, *map(astuple, values))) if len(values) > 1 else values[0]


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
