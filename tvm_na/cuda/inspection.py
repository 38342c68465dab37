"""What a compiled kernel uses of a GPU: registers, memory, instructions. For tests and for people; needs no GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tvm_na.cuda import toolchain, toolkit
from tvm_na.cuda.limits import Resources

R = TypeVar("R")


@dataclass(frozen=True)
class Inspection:
    """One kernel on one architecture.

    Attributes:
        name: The kernel's name.
        arch: Such as ``sm_90``.
        registers: Of 32 bits, per thread.
        spill_bytes: What a thread stores to and loads from memory since registers are short; 0 is what is
            wanted.
        stack_bytes: Memory of a thread for its arrays; 0 if all are in registers.
        shared_bytes: Shared memory of a block whose size is known to the compiler.
        instructions: How often each instruction stands in the code, with its modifiers, such as ``HMMA.16816.F32``.
        language: ``SASS``, what the GPU executes, or ``PTX`` where no disassembler is installed: there one
            instruction may stand for many.
    """

    name: str
    arch: str
    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int
    instructions: Counter[str]
    language: str

    def count(self, prefix: str) -> int:
        """How many instructions begin with ``prefix``."""
        return sum(n for name, n in self.instructions.items() if name.startswith(prefix))


def inspect_kernel(code: str, arch: str, name: str | None = None) -> Inspection:
    """Compile a kernel as it is compiled for use, and see what became of it.

    Args:
        code: CUDA C++.
        arch: Such as ``sm_90``.
        name: Which kernel; None if there is but one.

    Raises:
        RuntimeError: there is no compiler, or it or a disassembler fails.
        ValueError: there is no such kernel, or more than one without a name.
    """
    cubin, text, log = toolchain.find_compiler().parts(code, arch)
    ptx = text.decode()
    kernel, used = _only(resources_of(log), name)
    sass = disassembled(cubin)
    language = "PTX" if sass is None else "SASS"
    instructions = count_ptx(ptx, kernel) if sass is None else count_sass(sass, kernel)
    about = (used.registers, used.spill_bytes, used.stack_bytes, used.shared_bytes)
    return Inspection(kernel, arch, *about, instructions, language)


def _only(kernels: dict[str, R], name: str | None) -> tuple[str, R]:
    names = list(kernels) if name is None else [n for n in kernels if n == name]
    if len(names) != 1:
        wanted = "one kernel" if name is None else f"the kernel {name}"
        raise ValueError(f"code: required {wanted}, got {', '.join(kernels) or 'none'}")
    return names[0], kernels[names[0]]


def resources_of(log: str) -> dict[str, Resources]:
    """What ``ptxas -v`` says of each kernel.

    Raises:
        RuntimeError: it is not as expected.
    """
    found: dict[str, Resources] = {}
    for text in re.split(r"Compiling entry function ", log)[1:]:
        name = re.match(r"'(\w+)'", text)
        registers = re.search(r"Used (\d+) registers", text)
        memory = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", text)
        if name is None or registers is None or memory is None:
            raise RuntimeError(f"ptxas: required registers and spills of each kernel, got {text}")
        stack, stores, loads = map(int, memory.groups())
        shared = re.search(r"(\d+) bytes smem", text)
        found[name[1]] = Resources(int(registers[1]), stores + loads, stack, int(shared[1]) if shared else 0)
    return found


def language() -> str:
    """What instructions are counted in here: ``SASS``, or ``PTX`` where no disassembler is."""
    return "SASS" if all(map(toolkit.tool, ("cuobjdump", "nvdisasm"))) else "PTX"  # the former calls the latter


def disassembled(cubin: bytes) -> str | None:
    """The disassembly of a cubin; None where there is no disassembler.

    Raises:
        RuntimeError: it fails.
    """
    cuobjdump = toolkit.tool("cuobjdump")
    if cuobjdump is None or language() == "PTX":
        return None
    with tempfile.TemporaryDirectory(prefix="tvm_na-") as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        done = subprocess.run([cuobjdump, "--dump-sass", str(file)], check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{cuobjdump} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def count_sass(text: str, kernel: str) -> Counter[str]:
    """Instructions of one kernel in cuobjdump's disassembly."""
    parts = re.split(r"Function : (\w+)", text)
    body = "".join(parts[i + 1] for i in range(1, len(parts), 2) if parts[i] == kernel)
    return Counter(re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", body, re.MULTILINE))


def count_ptx(text: str, kernel: str) -> Counter[str]:
    """Instructions of one kernel in PTX."""
    found = re.search(rf"\.entry {kernel}\(.*?^}}", text, re.MULTILINE | re.DOTALL)
    body = "" if found is None else found[0]
    return Counter(re.findall(r"^\s+(?:@!?%\w+\s+)?([a-z][\w.:]*)(?=[\s;{])[^;\n]*;", body, re.MULTILINE))
