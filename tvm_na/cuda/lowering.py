"""From a scheduled IRModule to CUDA C++ and host code, by TVM's passes and some of ours."""

from __future__ import annotations

import operator
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tvm_na.cuda import names, workarounds
from tvm_na.cuda.limits import Sizes
from tvm_na.targets.target import NATarget

_environment = threading.Lock()
_OPERATORS: dict[str, Callable[[int, int], int]] = {
    "Add": operator.add,
    "Sub": operator.sub,
    "Mul": operator.mul,
    "FloorDiv": operator.floordiv,
    "Max": max,
    "Min": min,
}


@dataclass(frozen=True)
class Launch:
    """How a device function is launched.

    Attributes:
        threads: Of a block, along x, y and z.
        blocks: How many, along x.
        tensors: The names of those that it takes.
    """

    threads: tuple[int, int, int]
    blocks: int
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Lowered:
    """What TVM makes of a scheduled IRModule.

    Attributes:
        source: CUDA C++.
        host: TVM's module of host code, which imports the source.
        sizes: Of a block of each device function, by its name, in the order in which they are launched.
        functions: What each is made of, TVM's functions after the host's part is apart.
    """

    source: str
    host: Any
    sizes: dict[str, Sizes]
    functions: dict[str, Any]

    def launch(self, name: str, batch: int) -> Launch:
        """How a device function is launched with a batch (imports TVM)."""
        extents = _extents(self.functions[name], batch)
        x, y, z = (extents.get(f"threadIdx.{axis}", 1) for axis in "xyz")
        tensors = tuple(str(p.name).removesuffix("_ptr") for p in self.functions[name].params)
        return Launch((x, y, z), extents.get("blockIdx.x", 1), tensors)


def lowered(module: Any, target: NATarget) -> Lowered:
    """What TVM makes of a scheduled IRModule whose functions have their bodies (imports TVM; needs no compiler).

    Raises:
        RuntimeError: it has no device code, or needs global memory of its own.
    """
    import tvm

    needed = frozenset[str]().union(*(workarounds.of(func) for func in module.functions.values()))
    # The CUDA compiler finds common subexpressions itself; TVM would make arguments of those of the batch.
    config = {"tirx.disable_cse_tir": True, **workarounds.pass_config(needed)}
    functions: dict[str, Any] = {}
    context = tvm.transform.PassContext(opt_level=3, config=config, instruments=[_watch(functions)])
    with context, _device_code_as_source():
        pipeline = names.pipeline_with_entry(workarounds.pipeline(needed))
        host = tvm.tirx.build(names.named(module), target=target.tvm_target(), pipeline=pipeline)
    if "TVMBackendAllocWorkspace" in host.inspect_source("ll"):
        # Taken from a pool that knows nothing of streams, by cudaMalloc, which no CUDA graph can capture.
        raise RuntimeError("kernel: required one without global memory of its own, got one that allocates a workspace")
    source = _source_of(host)
    bounds = re.findall(r"__launch_bounds__\((\d+)\)\s+(\w+)", source)
    threads = {name: int(count) for count, name in bounds}  # a block of one thread has none
    if not functions or not threads.keys() <= functions.keys():
        got = f"{', '.join(functions) or 'none'}, numbers of threads of {', '.join(threads) or 'none'}"
        raise RuntimeError(f"kernel: required device functions and their numbers of threads, got {got}")
    # The first has the name of all, the others have a number behind it.
    functions = dict(sorted(functions.items(), key=lambda item: (len(item[0]), item[0])))
    sizes = {name: _sizes(func, threads.get(name, 1)) for name, func in functions.items()}
    return Lowered(source, host, sizes, functions)


def _sizes(func: Any, threads: int) -> Sizes:
    """Of a block of a device function, by the shared memory that it allocates."""
    from tvm import s_tir

    (by_scope,) = s_tir.analysis.calculate_allocated_bytes(func).values()
    found = {str(scope): int(count) for scope, count in by_scope.items()}
    return Sizes(threads, found.get("shared", 0), found.get("shared.dyn", 0))


def _watch(found: dict[str, Any]) -> Any:
    """An instrument that adds to ``found`` each device function, by its name, once the host's part is apart."""
    import tvm

    @tvm.ir.instrument.pass_instrument
    class Watch:
        def run_after_pass(self, module: Any, info: Any) -> None:
            if info.name == "tirx.SplitHostDevice":
                functions = [f for f in module.functions.values() if "tirx.kernel_launch_params" in f.attrs]
                found.update({str(function.attrs["global_symbol"]): function for function in functions})

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


def _extents(func: Any, batch: int) -> dict[str, int]:
    """How many blocks and threads a device function has along each axis, where its one number is the batch."""
    found = {}
    for stmt in _statements(func.body):
        if type(stmt).__name__ == "AttrStmt" and stmt.attr_key == "thread_extent":
            found[str(stmt.node.thread_tag)] = _value(stmt.value, batch)
    return found


def _statements(stmt: Any) -> Iterator[Any]:
    """A statement and those in it."""
    yield stmt
    parts = [getattr(stmt, name, None) for name in ("body", "then_case", "else_case")]
    for part in (*parts, *getattr(stmt, "seq", ())):
        if part is not None:
            yield from _statements(part)


def _value(expr: Any, batch: int) -> int:
    """An expression of the batch alone; RuntimeError for any that is not a product, a sum or a quotient."""
    kind = type(expr).__name__
    if kind == "IntImm":
        return int(expr.value)
    if kind == "Var":
        return batch
    if kind not in _OPERATORS:
        raise RuntimeError(f"kernel: required a number of blocks that is reckoned from the batch, got {expr}")
    return _OPERATORS[kind](_value(expr.a, batch), _value(expr.b, batch))
