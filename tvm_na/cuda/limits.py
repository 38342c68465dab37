"""What a GPU can launch: threads, shared memory and registers of a block, against what a kernel asks for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm_na.targets.cuda_arch import STATIC_SHARED_BYTES
from tvm_na.targets.target import NATarget

#: The attribute of a PrimFunc with a number of registers that no thread of it can do without: see
#: :func:`check_least_registers`.
LEAST_REGISTERS = "tvm_na.least_registers"

_MAX_THREADS = 1024  # of a block, on every architecture
_WARP = 32
_REGISTERS_AT_ONCE = 256  # in so large units a warp gets them


class UnlaunchableError(RuntimeError):
    """No GPU of the target can launch a kernel, or only with numbers in memory that belong into registers.

    Attributes:
        what: Of what it asks too much: "threads", "shared memory", "registers" or "spills".
    """

    def __init__(self, what: str, required: str, got: str) -> None:
        """See the class; the message says what was required and what came."""
        super().__init__(f"{what}: required {required}, got {got}")
        self.what = what


@dataclass(frozen=True)
class Sizes:
    """What is known of a block before any compiler of CUDA has run.

    Attributes:
        threads: Its threads.
        static_shared: Bytes of shared memory whose size the code says.
        dynamic_shared: Bytes of shared memory whose size the launch says, which alone may be more than 48 KiB.
    """

    threads: int
    static_shared: int
    dynamic_shared: int


@dataclass(frozen=True)
class Resources:
    """What the assembler, ptxas, made of a kernel.

    Attributes:
        registers: Of 32 bits, per thread.
        spill_bytes: What a thread stores to and loads from memory since registers are short.
        stack_bytes: Memory of a thread for its arrays, and for what it spills.
        shared_bytes: Shared memory of a block whose size the code says.
    """

    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int


def check_sizes(sizes: Sizes, target: NATarget) -> None:
    """UnlaunchableError if a block is larger than any GPU of ``target`` can have."""
    if not 1 <= sizes.threads <= _MAX_THREADS:
        raise UnlaunchableError("threads", f"1 to {_MAX_THREADS} of a block", str(sizes.threads))
    if sizes.static_shared > STATIC_SHARED_BYTES:
        limit = f"at most {STATIC_SHARED_BYTES} bytes of static size"
        raise UnlaunchableError("shared memory", limit, str(sizes.static_shared))
    total = sizes.static_shared + sizes.dynamic_shared
    if total > target.max_shared_bytes:
        limit = f"at most {target.max_shared_bytes} bytes of a block of {target.name}"
        raise UnlaunchableError("shared memory", limit, str(total))


def check_resources(resources: Resources, sizes: Sizes, target: NATarget) -> None:
    """UnlaunchableError if a block takes more than it can have, as far as only the assembler knows."""
    check_sizes(Sizes(sizes.threads, resources.shared_bytes, sizes.dynamic_shared), target)
    _check_registers(resources.registers, sizes.threads, target, f"{resources.registers}")


def check_least_registers(func: Any, sizes: Sizes, target: NATarget) -> None:
    """UnlaunchableError if so large a block has fewer registers for a thread than ``func`` says it must have.

    The compiler, which is told how many threads there are, would find a way, after seconds: to memory and back.
    """
    least = int(func.attrs.get(LEAST_REGISTERS, 0)) if func.attrs else 0
    _check_registers(least, sizes.threads, target, f"at least {least}")


def _check_registers(registers: int, threads: int, target: NATarget, got: str) -> None:
    each = -(-registers * _WARP // _REGISTERS_AT_ONCE) * _REGISTERS_AT_ONCE
    if -(-threads // _WARP) * each > target.registers_per_block:
        limit = f"at most {target.registers_per_block} of a block"
        raise UnlaunchableError("registers", limit, f"{got} in each of {threads} threads")
