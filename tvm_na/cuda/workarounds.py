"""What TVM 0.27's way from a scheduled function to CUDA gets wrong for some kernels, and how those kernels avoid it.

A PrimFunc names the workarounds that it needs in its attribute :data:`ATTRIBUTE`, separated by commas; others are
compiled as TVM does.

``warp memory``: of several buffers in scope ``warp``, TVM's LowerWarpMemory rewrites only the first of a sequence. The
others become arrays of each thread, and what one lane reads of another is silently wrong. So it is run until nothing
changes. For that pass to understand the buffers, common subexpressions of their indices must stay where they are, and
no two buffers may share memory (``tirx.merge_static_smem`` turns that off).

``compiler unrolls``: TVM writes unrolled loops out itself, which takes 25 s for a kernel of tensor core instructions,
most of it in passes after that; with a pragma the CUDA compiler does it in 0.3 s.

``asynchronous copies``: nothing wrong, but TVM makes them (``cp.async``) of a pipelined loop's copies only when told.
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
    ASYNCHRONOUS_COPIES: {"tirx.use_async_copy": True},
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
    if WARP_MEMORY not in names:
        return "default"
    from tvm.tirx.compilation_pipeline import get_tir_pipeline, register_tir_pipeline

    def with_fixpoint() -> tuple[Any, Any, Any]:
        passes, finalize_host, finalize_device = get_tir_pipeline("default")

        def finalize() -> Any:
            import tvm

            return tvm.transform.Sequential([_lower_all_warp_memory(), finalize_device()])

        return passes, finalize_host, finalize

    register_tir_pipeline(_PIPELINE, with_fixpoint)
    return _PIPELINE


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
