"""What TVM 0.27's way from a scheduled function to CUDA gets wrong for some kernels, and how those kernels avoid it.

A PrimFunc names the workarounds that it needs in its attribute :data:`ATTRIBUTE`, separated by commas; others are
compiled as TVM does.

``warp memory``: of several buffers in scope ``warp``, TVM's LowerWarpMemory rewrites only the first of a sequence. The
others become arrays of each thread, and what one lane reads of another is silently wrong. So it is run until nothing
changes. For that pass to understand the buffers, common subexpressions of their indices must stay where they are, and
no two buffers may share memory (``tirx.merge_static_smem`` turns that off).

``compiler unrolls``: TVM writes unrolled loops out itself, which takes 25 s for a kernel of tensor core instructions,
most of it in passes after that; with a pragma the CUDA compiler does it in 0.3 s.

``asynchronous copies``: TVM makes them (``cp.async``) of the copies in a pipelined loop, and only when told; here of
all (``copies.py``). What it does when told includes a pass for other hardware (LowerAsyncDMA), which stops at loops it
does not understand. So it is not told, and the one pass that is needed runs after the others.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

#: The attribute of a PrimFunc that names its workarounds.
ATTRIBUTE = "tvm_na.cuda_workarounds"

WARP_MEMORY = "warp memory"
COMPILER_UNROLLS = "compiler unrolls"
ASYNCHRONOUS_COPIES = "asynchronous copies"

_CONFIG: dict[str, dict[str, Any]] = {
    WARP_MEMORY: {"tirx.disable_cse_tir": True, "tirx.merge_static_smem": True},
    COMPILER_UNROLLS: {"tirx.UnrollLoop": {"explicit_unroll": 0}},
    ASYNCHRONOUS_COPIES: {},
}
_PIPELINE = "tvm_na.cuda"
_MOST_RUNS = 100  # of LowerWarpMemory; each does one buffer of every sequence


def of(func: Any) -> frozenset[str]:
    """The workarounds that a PrimFunc asks for.

    Raises:
        ValueError: it names one that there is not.
    """
    if not func.attrs or ATTRIBUTE not in func.attrs:
        return frozenset()
    names = frozenset(name.strip() for name in str(func.attrs[ATTRIBUTE]).split(","))
    if unknown := names - set(_CONFIG):
        raise ValueError(f"{ATTRIBUTE}: required some of {', '.join(_CONFIG)}, got {', '.join(sorted(unknown))}")
    return names


def pass_config(names: Collection[str]) -> dict[str, Any]:
    """The options of TVM's PassContext for these workarounds."""
    return {key: value for name in sorted(names) for key, value in _CONFIG[name].items()}


def pipeline(names: Collection[str]) -> str:
    """The name of TVM's pipeline for these workarounds (imports TVM)."""
    changing = {WARP_MEMORY, ASYNCHRONOUS_COPIES}.intersection(names)
    if not changing:
        return "default"
    from tvm.tirx.compilation_pipeline import get_tir_pipeline, register_tir_pipeline

    def changed() -> tuple[Any, Any, Any]:
        import tvm

        passes, finalize_host, finalize_device = get_tir_pipeline("default")
        if ASYNCHRONOUS_COPIES in changing:
            inject = tvm.s_tir.transform.InjectPTXAsyncCopy()
            passes = tvm.transform.Sequential([_make_asynchronous(), passes, inject])

        def finalize() -> Any:
            if WARP_MEMORY not in changing:
                return finalize_device()
            return tvm.transform.Sequential([_lower_all_warp_memory(), finalize_device()])

        return passes, finalize_host, finalize

    name = f"{_PIPELINE}: {', '.join(sorted(changing))}"
    register_tir_pipeline(name, changed)
    return name


def _make_asynchronous() -> Any:
    import tvm

    from tvm_na.cuda.async_copies import asynchronous

    @tvm.transform.module_pass(opt_level=0)
    def make(module: Any, _: Any) -> Any:
        return tvm.IRModule({name: asynchronous(func) for name, func in module.functions.items()}, attrs=module.attrs)

    return make


def _lower_all_warp_memory() -> Any:
    import tvm
    import tvm_ffi

    once = tvm.tirx.transform.LowerWarpMemory()

    @tvm.transform.module_pass(opt_level=0)
    def lower(module: Any, _: Any) -> Any:
        for _run in range(_MOST_RUNS):
            lowered = once(module)
            if tvm_ffi.structural_equal(lowered, module):
                return module
            module = lowered
        raise RuntimeError(f"LowerWarpMemory: required an end, got changes after {_MOST_RUNS} runs")

    return lower
