"""Artifacts of the format ``wasm``: the kernels of the format ``tvm`` as WebAssembly, and a plan in place of Relax."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from tvm_na.deploy.manifest import MODULE, PLAN, SHARED_MODULE, WEIGHTS
from tvm_na.deploy.relax.build import facts_of, warn_of_untuned
from tvm_na.deploy.relax.kernels import Kernels
from tvm_na.deploy.relax.library import lower_graph
from tvm_na.deploy.request import Request, traced
from tvm_na.deploy.wasm.plan import plan_of
from tvm_na.deploy.weights import write_weights
from tvm_na.jit.library import write_object
from tvm_na.wasm import link, machine

#: What runs it in a browser and in node, copied as it is.
WEB = Path(__file__).with_name("web")


def build(request: Request, folder: Path, scratch: Path) -> dict[str, Any]:
    """Make every file but the manifest; ``problems``, ``code`` and ``requires`` of the manifest are returned."""
    link.require()  # before anything that takes long
    machine.require()
    graph = traced(request)
    kernels = Kernels(request.target, request.records, request.report)
    with kernels.known():
        kernels.call_in(graph)
        lowered = lower_graph(graph, kernels.all, request.example, request.batch, request.target)
    plan = plan_of(lowered.module, list(lowered.weights))
    request.report("compiling the kernels")
    made = scratch / "kernels.o"
    _compile(lowered.module, request, made)
    functions = sorted({name for name, _ in plan.calls})
    modules = {MODULE: False, SHARED_MODULE: True}
    for file, shared in modules.items():
        link.link(functions, shared, str(folder / file), [made])
    content = plan.to_json(kernels.all, {file: link.pages_of(folder / file) for file in modules})
    (folder / PLAN).write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
    weights = {**lowered.weights, **plan.constants}
    if request.weights_dtype == "float16":
        weights = {name: _narrow(array) for name, array in weights.items()}
    write_weights(folder / WEIGHTS, weights)
    for source in WEB.iterdir():
        shutil.copyfile(source, folder / source.name)
    warn_of_untuned(request, kernels.all, lowered.untuned)
    return facts_of(kernels.all, list(weights), lowered.untuned, {})


def _compile(module: Any, request: Request, made: Path) -> None:
    """The object of a lowered module's kernels, without ``main``."""
    import tvm

    kernels = {
        var.name_hint: func.with_attr("global_symbol", var.name_hint)
        for var, func in module.functions.items()
        if isinstance(func, tvm.tirx.PrimFunc)
    }
    target = request.target.tvm_target(1)
    with target:
        write_object(tvm.compile(tvm.IRModule(kernels), target=target).mod, made)


def _narrow(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The array as float16, if that loses nothing."""
    if array.dtype != np.float32:
        return array
    with np.errstate(over="ignore"):
        narrow = array.astype(np.float16)
    return narrow if np.array_equal(narrow.astype(np.float32), array) else array
