"""What is known of the device functions of a scheduled module without a GPU: of their code, and of what they do."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tvm_na.cuda import inspection, late, toolchain
from tvm_na.cuda.limits import Resources, check_resources, check_sizes
from tvm_na.cuda.lowering import Lowered, lowered
from tvm_na.cuda.static.memory import Array
from tvm_na.cuda.static.ptx import Function, functions_of
from tvm_na.cuda.static.sass import Region, lines_of, regions_of
from tvm_na.cuda.static.walk import walk
from tvm_na.problems.base import Problem
from tvm_na.targets.gpus import WARP, blocks_at_once
from tvm_na.targets.target import NATarget

#: Thread blocks that a walk goes with, at least and at most, and the threads that it has beyond the least.
_FEWEST, _MOST, _THREADS = 2, 5, 512
#: Products of 16 x 8 x 16 numbers of 16 bits, in whose time the machine does one of these.
_PRODUCTS = {"m16n8k16": 1.0, "m16n8k8.row.col.f32.tf32": 1.0, "m16n8k8": 0.5}
_SPECIAL = ("ex2.", "rcp.approx", "rsqrt.", "sqrt.approx", "lg2.", "sin.", "cos.", "tanh.", "div.approx")


@dataclass(frozen=True)
class Facts:
    """A device function, for a batch. What warps do is the mean of those of some blocks.

    Attributes:
        name: The function's.
        arch: Such as ``sm_90``.
        registers: Of 32 bits, of a thread.
        spill_bytes: What a thread stores to and loads from memory since registers are short.
        stack_bytes: Memory of a thread for its arrays.
        shared_bytes: Of a block.
        threads: Of a block.
        blocks: How many are launched.
        at_once: Blocks on a multiprocessor.
        language: ``SASS``, what the machine executes; ``PTX`` where there is no disassembler: there one instruction may
            stand for many.
        code: Instructions that stand in it, but for such as only threads come to that have parted.
        instructions: How many of each stand in it, by name without modifiers.
        loops: Of each region of it (see ``sass.py``): its instructions, and how often a warp goes through it.
        products: Of a tensor core, in units of 16 x 8 x 16 numbers of 16 bits, of a warp.
        matrices: Loads of matrices from shared memory, of a warp.
        copies: Asynchronous copies of a warp.
        busiest: Those of the warp of a block that does the most, over the mean.
        special: Exponentials, reciprocals and the like, of a warp.
        float32: Additions and multiplications, fused or not, of a warp; of PTX.
        float64: The same.
        wavefronts: Cycles of shared memory, of a warp.
        cached: Bytes that come from the second cache through the first, each once, of a block.
        uncached: Those that come by the first, of a block.
        written: Of a block.
        tensors: Bytes of all that it reads and writes, each once.
        guessed: Branches and addresses of which only data tells where they lead.
    """

    name: str
    arch: str
    registers: int
    spill_bytes: int
    stack_bytes: int
    shared_bytes: int
    threads: int
    blocks: int
    at_once: int
    language: str
    code: int
    instructions: dict[str, int]
    loops: tuple[tuple[int, float], ...]
    products: float
    matrices: float
    copies: float
    busiest: float
    special: float
    float32: float
    float64: float
    wavefronts: float
    cached: float
    uncached: float
    written: float
    tensors: int
    guessed: int

    @property
    def warps(self) -> int:
        """Of a block."""
        return -(-self.threads // WARP)

    @property
    def executed(self) -> float:
        """Instructions that a warp executes."""
        return sum(count * times for count, times in self.loops)

    @property
    def from_cache(self) -> float:
        """Bytes between multiprocessors and the second cache, of all blocks."""
        return self.blocks * (self.cached + self.uncached + self.written)

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        return dataclasses.asdict(self)

    @classmethod
    def of_dict(cls, given: Mapping[str, Any]) -> Facts:
        """The facts that :meth:`to_dict` gave, also through JSON; TypeError if they are others."""
        return cls(**{**given, "loops": tuple((int(n), float(times)) for n, times in given["loops"])})


def facts_of(module: Any, target: NATarget, problem: Problem, batch: int) -> list[Facts]:
    """The device functions of a scheduled IRModule, in the order in which they are launched (seconds; imports TVM).

    Args:
        module: As :func:`tvm_na.cuda.library.compile_library` takes it.
        target: A CUDA target; the device need not be here.
        problem: What it computes.
        batch: Samples of a call.

    Raises:
        UnlaunchableError: no GPU of the target can launch it.
        RuntimeError: there is no CUDA compiler, it fails, or its code is not understood.
    """
    code = lowered(late.written(module), target)
    for sizes in code.sizes.values():
        check_sizes(sizes, target)
    cubin, text, log = toolchain.find_compiler().parts(code.source, target.arch)
    resources, functions = inspection.resources_of(log), functions_of(text.decode())
    disassembly = inspection.disassembled(cubin)
    for name, sizes in code.sizes.items():
        check_resources(resources[name], sizes, target)
    return [_facts(functions[name], code, resources[name], disassembly, problem, batch, target) for name in code.sizes]


def _facts(
    function: Function,
    code: Lowered,
    resources: Resources,
    disassembly: str | None,
    problem: Problem,
    batch: int,
    target: NATarget,
) -> Facts:
    launch = code.launch(function.name, batch)
    sizes = code.sizes[function.name]
    warps, shared = -(-sizes.threads // WARP), resources.shared_bytes + sizes.dynamic_shared
    walked = walk(function, launch.threads, launch.blocks, sample_of(launch.blocks, sizes.threads), batch)
    times = walked.executed.mean(axis=1)
    counts = _counts(function, times)
    lines = None if disassembly is None else lines_of(disassembly, function.name)
    if lines is None:
        regions = [Region(len(block.instructions), float(n)) for block, n in zip(function.blocks, times, strict=True)]
        names = Counter(instruction.name for block in function.blocks for instruction in block.instructions)
    else:
        regions = regions_of(lines, function, times)
        names = Counter(line.op.partition(".")[0] for line in lines)
    of_tensors = {a.name: a.bytes * (batch if a.has_batch else 1) for a in (*problem.arguments(), *problem.scratch())}
    return Facts(
        name=function.name,
        arch=target.arch,
        registers=resources.registers,
        spill_bytes=resources.spill_bytes,
        stack_bytes=resources.stack_bytes,
        shared_bytes=shared,
        threads=sizes.threads,
        blocks=launch.blocks,
        at_once=blocks_at_once(target.arch, warps, resources.registers, shared),
        language="PTX" if lines is None else "SASS",
        code=sum(region.instructions for region in regions),
        instructions=dict(sorted(names.items())),
        loops=tuple((region.instructions, region.times) for region in regions),
        products=sum(n * counts[kind] for kind, n in _PRODUCTS.items()),
        matrices=counts["ldmatrix"],
        copies=float(walked.copied.mean()),
        busiest=busiest(walked.copied, warps),
        special=counts["special"],
        float32=counts["f32"],
        float64=counts["f64"],
        wavefronts=float(walked.wavefronts.mean()),
        cached=walked.cached / walked.thread_blocks,
        uncached=walked.uncached / walked.thread_blocks,
        written=walked.written / walked.thread_blocks,
        tensors=sum(of_tensors[name] for name in launch.tensors if name in of_tensors),
        guessed=walked.guessed,
    )


def sample_of(blocks: int, threads: int) -> list[int]:
    """Some thread blocks, here and there: by the golden ratio, which has no multiple in common with a map's rows."""
    count = max(_FEWEST, min(_MOST, _THREADS // threads))
    if blocks <= count:
        return list(range(blocks))
    golden = (math.sqrt(5) - 1) / 2
    return sorted({int((0.5 + n * golden) % 1 * blocks) for n in range(count)})


def busiest(copied: Array, warps: int) -> float:
    """The copies of the warp of a block that does the most, over the mean of its warps; 1 where there are none."""
    of_blocks = copied.reshape(-1, warps)
    return float(np.max(of_blocks.sum(0)) / np.mean(of_blocks.sum(0))) if copied.any() else 1.0


def _counts(function: Function, times: Array) -> dict[str, float]:
    """How many instructions of some kinds a warp executes."""
    kinds = dict.fromkeys((*_PRODUCTS, "ldmatrix", "special", "f32", "f64"), 0.0)
    for block, often in zip(function.blocks, times, strict=True):
        for kind, count in Counter(_kind(instruction.op) for instruction in block.instructions).items():
            if kind:
                kinds[kind] += count * float(often)
    return kinds


def _kind(op: str) -> str:
    if op.startswith("mma."):
        shape = next((kind for kind in _PRODUCTS if kind in op), None)
        if shape is None:
            raise RuntimeError(f"static model: required a product of {', '.join(_PRODUCTS)}, got {op}")
        return shape
    if op.startswith("ldmatrix"):
        return "ldmatrix"
    if op.startswith(_SPECIAL):
        return "special"
    name, _, type_ = op.partition(".")[0], "", op.rpartition(".")[2]
    return type_ if name in ("add", "sub", "mul", "fma", "mad") and type_ in ("f32", "f64") else ""
