"""Artifacts of the format ``aoti``: kernels as operators of PyTorch, and AOTInductor for the rest of the model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from tvm_na.deploy.aoti import inductor, linear, operators
from tvm_na.deploy.aoti.calls import call_kernels, fakes_of, layers_of
from tvm_na.deploy.artifact import load_operators
from tvm_na.deploy.export import exported, known_operators
from tvm_na.deploy.manifest import MODEL, OPERATORS, describe_kernel, torch_interface
from tvm_na.deploy.request import Request, traced
from tvm_na.problems.dense import DenseProblem
from tvm_na.targets.target import cpu_features


def build(request: Request, folder: Path, scratch: Path) -> dict[str, Any]:
    """Make every file but the manifest; ``problems``, ``code`` and ``requires`` of the manifest are returned."""
    graph = traced(request)
    layers = layers_of(graph)
    calls = Counter(layers.values())
    decisions = linear.decide([p for p in calls if isinstance(p, DenseProblem)], request)
    problems = [p for p in calls if not isinstance(p, DenseProblem) or decisions[p].ours]
    kernels = operators.compile_objects(problems, request.target, scratch, request.records, request.report)
    request.report("linking the kernels")
    features = cpu_features(request.target)
    namespace = operators.link_operators(kernels, features, scratch, folder / OPERATORS)
    load_operators(folder / OPERATORS, namespace)
    request.report("compiling the rest with AOTInductor")
    with known_operators(namespace, fakes_of(kernels)):
        call_kernels(graph, layers, kernels, namespace)
        rest = exported(graph, request.example, request.batch)
        inductor.compile_program(rest, request.target, folder / MODEL, scratch, request.dtype, request.autotune)
    return {
        "code": {
            "namespace": namespace,
            "linear": [
                {"text": str(problem), "layers": calls[problem], "ours": decision.ours, "reason": decision.reason}
                for problem, decision in decisions.items()
            ],
        },
        "requires": {"torch": torch_interface(torch.__version__)},
        "problems": [describe_kernel(k.problem, calls[k.problem], k.selection) for k in kernels],
    }
