"""Artifacts of the format ``aoti``: kernels as operators of PyTorch, and AOTInductor for the rest of the model."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tvm_na.deploy.aoti import inductor as aoti
from tvm_na.deploy.aoti import operators as kernels
from tvm_na.deploy.artifact import load_operators
from tvm_na.deploy.export import Operators, attentions_of, call_kernels, export_model
from tvm_na.deploy.manifest import MODEL, OPERATORS, torch_interface
from tvm_na.deploy.request import Request
from tvm_na.targets.target import cpu_features


def build(request: Request, folder: Path, scratch: Path) -> dict[str, Any]:
    """Make every file but the manifest; ``problems``, ``code`` and ``requires`` of the manifest are returned."""
    request.report("tracing the model")
    program = export_model(request.model, request.example, request.batch)
    attentions = attentions_of(program)
    problems = list(dict.fromkeys(attention.problem for attention in attentions))
    selections = kernels.compile_objects(
        problems,
        request.target,
        scratch,
        request.records,
        lambda problem: request.report(f"compiling the kernel of {problem}"),
    )
    request.report("linking the kernels")
    features = cpu_features(request.target)
    namespace = kernels.link_operators(problems, request.target, features, scratch, folder / OPERATORS)
    load_operators(folder / OPERATORS, namespace)
    request.report("compiling the rest with AOTInductor")
    with Operators(namespace, problems):
        calls = call_kernels(program, attentions, namespace)
        aoti.compile_program(program, request.target, folder / MODEL, scratch, request.autotune)
    return {
        "code": {"namespace": namespace},
        "requires": {"torch": torch_interface(torch.__version__)},
        "problems": [
            {"problem": asdict(problem), "text": str(problem), "layers": calls[problem], "schedule": str(schedule)}
            for problem, schedule in zip(problems, selections, strict=True)
        ],
    }
