"""Artifacts of the format ``tvm``: kernels of ours for attention, products and norms, connected by Relax."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from tvm_na.deploy.export import attentions_of, export_model, images_like
from tvm_na.deploy.manifest import LIBRARY, RUNTIME, WEIGHTS
from tvm_na.deploy.relax.kernels import Kernel, Kernels
from tvm_na.deploy.relax.library import compile_graph
from tvm_na.deploy.relax.linker import linker_for
from tvm_na.deploy.relax.rewrite import layered
from tvm_na.deploy.request import Request
from tvm_na.deploy.weights import write_weights


def build(request: Request, folder: Path, scratch: Path) -> dict[str, Any]:
    """Make every file but the manifest; ``problems``, ``code`` and ``requires`` of the manifest are returned."""
    link = linker_for(request.target)  # before anything that takes long
    request.report("tracing the model")
    program = export_model(request.model, request.example, request.batch)
    attentions_of(program)  # there must be some
    graph = layered(program.run_decompositions({}))
    with Kernels(request.target, request.records, request.report) as kernels:
        kernels.call_in(graph)
        request.report("compiling the library")
        images = images_like(request.example, request.batch)
        library = compile_graph(graph, kernels.all, images, request.batch, request.target)
    library.write(folder / LIBRARY, link)
    write_weights(folder / WEIGHTS, library.weights)
    requires = {"apache-tvm-ffi": metadata.version("apache-tvm-ffi")}
    if request.runtime is None:
        requires["apache-tvm"] = metadata.version("apache-tvm")
    else:
        shutil.copyfile(request.runtime, folder / RUNTIME)
    untuned = [*library.untuned, *untuned_kernels(kernels.all)]
    if untuned:
        warnings.warn(in_words(untuned, len(kernels.all)), stacklevel=4)
    return {
        "code": {
            "weights": list(library.weights),
            "largest_batch": min(kernel.largest_batch for kernel in kernels.all),
            "untuned": untuned,
        },
        "requires": requires,
        "problems": [_describe(kernel) for kernel in kernels.all if kernel.problem is not None],
    }


def untuned_kernels(kernels: list[Kernel]) -> list[str]:
    """The problems whose kernels have the default schedule."""
    schedules = ((kernel.text, kernel.selection) for kernel in kernels)
    return [text for text, schedule in schedules if schedule is not None and schedule.record is None]


def in_words(untuned: list[str], kernels: int) -> str:
    """The warning that kernels were not tuned."""
    few = ", ".join(untuned[:3]) + (", ..." if len(untuned) > 3 else "")
    which = f"{len(untuned)} of {kernels} kernels have no tuning record ({few})"
    return f"UNTUNED: {which}; tvm-na tune --whole-model makes them"


def _describe(kernel: Kernel) -> dict[str, Any]:
    assert kernel.problem is not None
    fields = asdict(kernel.problem)
    return {"problem": fields, "text": kernel.text, "layers": kernel.calls, "schedule": str(kernel.selection)}
