"""Artifacts of the format ``aoti``: kernels as operators of PyTorch, and AOTInductor for the rest of the model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import torch

from tvm_na.deploy.aoti import inductor, operators
from tvm_na.deploy.artifact import load_operators
from tvm_na.deploy.export import call_kernels, fakes_of, known_operators
from tvm_na.deploy.manifest import MODEL, OPERATORS, describe_kernel, torch_interface
from tvm_na.deploy.request import Request, traced
from tvm_na.targets.target import cpu_features


def build(request: Request, folder: Path, scratch: Path) -> dict[str, Any]:
    """Make every file but the manifest; ``problems``, ``code`` and ``requires`` of the manifest are returned."""
    program, attentions = traced(request)
    calls = Counter(attentions.values())
    problems = list(calls)
    selections = operators.compile_objects(problems, request.target, scratch, request.records, request.report)
    request.report("linking the kernels")
    features = cpu_features(request.target)
    namespace = operators.link_operators(problems, request.target, features, scratch, folder / OPERATORS)
    load_operators(folder / OPERATORS, namespace)
    request.report("compiling the rest with AOTInductor")
    with known_operators(namespace, fakes_of(problems)):
        call_kernels(program, attentions, problems, namespace)
        inductor.compile_program(program, request.target, folder / MODEL, scratch, request.autotune)
    return {
        "code": {"namespace": namespace},
        "requires": {"torch": torch_interface(torch.__version__)},
        "problems": [
            describe_kernel(problem, calls[problem], schedule)
            for problem, schedule in zip(problems, selections, strict=True)
        ],
    }
