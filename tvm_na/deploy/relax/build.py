"""Artifacts of the format ``tvm``: kernels of ours for attention, products and norms, connected by Relax."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from tvm_na.deploy.manifest import LIBRARY, RUNTIME, WEIGHTS, describe_kernel
from tvm_na.deploy.relax.kernels import Kernel, Kernels
from tvm_na.deploy.relax.library import compile_graph
from tvm_na.deploy.relax.linker import linker_for
from tvm_na.deploy.request import Request, traced
from tvm_na.deploy.weights import write_weights


def build(request: Request, folder: Path, scratch: Path) -> dict[str, Any]:
    """Make every file but the manifest; ``problems``, ``code`` and ``requires`` of the manifest are returned."""
    link = linker_for(request.target)  # before anything that takes long
    graph = traced(request)
    kernels = Kernels(request.target, request.records, request.report)
    with kernels.known():
        kernels.call_in(graph)
        request.report("compiling the library")
        library = compile_graph(graph, kernels.all, request.example, request.batch, request.target)
    library.write(folder / LIBRARY, link)
    write_weights(folder / WEIGHTS, library.weights)
    requires = {"apache-tvm-ffi": metadata.version("apache-tvm-ffi")}
    if request.runtime is None:
        requires["apache-tvm"] = metadata.version("apache-tvm")
    else:
        shutil.copyfile(request.runtime, folder / RUNTIME)
    warn_of_untuned(request, kernels.all, library.untuned)
    return facts_of(kernels.all, list(library.weights), library.untuned, requires)


def untuned_of(kernels: Sequence[Kernel], left: Sequence[str]) -> list[str]:
    """Kernels without a tuning record, after functions with much work that there is no search space for."""
    return [*left, *(k.text for k in kernels if k.selection is not None and k.selection.record is None)]


def warn_of_untuned(request: Request, kernels: Sequence[Kernel], left: Sequence[str]) -> None:
    """Name some of :func:`untuned_of` in a warning of whoever called :func:`tvm_na.deploy.compiler.compile`."""
    if not (untuned := untuned_of(kernels, left)):
        return
    few = ", ".join(untuned[:3]) + (", ..." if len(untuned) > 3 else "")
    which = f"{len(untuned)} of {len(kernels)} kernels have no tuning record ({few})"
    option = "" if request.weights_dtype is None else f" --weights-dtype {request.weights_dtype}"
    warnings.warn(f"UNTUNED: {which}; tvm-na tune --whole-model{option} makes them", stacklevel=5)


def facts_of(
    kernels: Sequence[Kernel], weights: list[str], left: Sequence[str], requires: dict[str, str]
) -> dict[str, Any]:
    """``code``, ``requires`` and ``problems`` of the manifest of a library of kernels, whose weights have names."""
    return {
        "code": {
            "weights": weights,
            "largest_batch": min(kernel.largest_batch for kernel in kernels),
            "untuned": untuned_of(kernels, left),
        },
        "requires": requires,
        "problems": [
            describe_kernel(kernel.problem, kernel.calls, kernel.selection)
            for kernel in kernels
            if kernel.problem is not None
        ],
    }
