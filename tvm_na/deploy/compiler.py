"""``tvm_na.compile``: a model, our kernels for its attention and AOTInductor for the rest, as one checked artifact."""

from __future__ import annotations

import datetime
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tvm_na import openmp
from tvm_na.benchmark import versions
from tvm_na.deploy import aoti, kernels
from tvm_na.deploy.artifact import Artifact, load, load_operators
from tvm_na.deploy.check import BUDGETS, name_of, reference_of
from tvm_na.deploy.manifest import (
    MANIFEST,
    MODEL,
    OPERATORS,
    Manifest,
    TensorSpec,
    describe_files,
    torch_interface,
    write_manifest,
)
from tvm_na.deploy.program import Operators, attentions_of, call_kernels, export_model
from tvm_na.models.registry import Preprocessing
from tvm_na.target import NATarget, check_runs_here, cpu_features, parse_target

Report = Callable[[str], None]

# The first whose Inductor compiles for another CPU than this one, and whose loader takes a folder.
_OLDEST_TORCH = (2, 13)


@dataclass(frozen=True)
class _Request:
    """The arguments of :func:`compile`, checked."""

    model: nn.Module
    example: Tensor
    target: NATarget
    batch: int | None
    folder: Path
    report: Report


def compile(
    model: nn.Module,
    example_input: Tensor,
    target: str | None = None,
    batch: int | str = "dynamic",
    *,
    output: str | os.PathLike[str],
    name: str | None = None,
    weights: str | None = None,
    preprocessing: Preprocessing | None = None,
    records: str | None = None,
    overwrite: bool = False,
    report: Report | None = None,
) -> Artifact:
    """Compile a model into an artifact: a folder that runs with PyTorch alone, without TVM and without tvm_na.

    The model is traced in evaluation mode and is not changed. Every attention of tvm_na in it becomes a kernel, made
    from the best tuning record as for a call; the rest is compiled by AOTInductor, weights included. The result is run
    on random inputs and compared with the eager reference; only if they agree it is moved to ``output``. Takes minutes.

    Args:
        model: On the CPU; takes one tensor and gives one tensor, or a list of them, all ``[batch, ...]``.
        example_input: ``[batch, ...]``, float32 or float64; its values and its batch play no role.
        target: The CPU to compile for, by a name of :mod:`tvm_na.target` that this machine can run; None for
            TVM_NA_TARGET, or this machine's.
        batch: ``"dynamic"`` for any, or the only one that the artifact is to take.
        output: The folder to make.
        name: What to call the model in the manifest; None for its class.
        weights: Where its weights come from, for the manifest; None says that they are random.
        preprocessing: How an image becomes an input, for the manifest.
        records: Which tuning records count: ``all``, ``user``, ``shipped`` or ``off``; None for TVM_NA_RECORDS.
        overwrite: Whether an artifact at ``output`` may be replaced.
        report: Called with a line before each step.

    Returns:
        The artifact, loaded.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
        NotImplementedError: the model has no attention, or one for which there is no kernel.
        RuntimeError: a compiler is missing or fails, or the artifact's numbers are wrong.
    """
    request = _checked(model, example_input, target, batch, output, overwrite, report or (lambda line: None))
    with _in_place(request.folder, overwrite) as (folder, scratch):
        facts = _build(request, records, folder, scratch)
        identity = {"name": name or type(model).__name__, "parameters": sum(p.numel() for p in model.parameters())}
        described = {
            "model": {**identity, "weights": weights},
            "preprocessing": None if preprocessing is None else asdict(preprocessing),
        }
        _finish(request, folder, {**facts, **described})
    return load(request.folder)


def _checked(
    model: Any, example: Any, target: Any, batch: Any, output: Any, overwrite: bool, report: Report
) -> _Request:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: required a torch.nn.Module, got {type(model).__name__}")
    elsewhere = sorted({str(p.device) for p in model.parameters() if p.device.type != "cpu"})
    if elsewhere:
        raise ValueError(f"model: required parameters on the CPU, got some on {', '.join(elsewhere)}")
    if not isinstance(example, Tensor):
        raise TypeError(f"example_input: required a torch.Tensor, got {type(example).__name__}")
    dtype = name_of(example.dtype)
    if dtype not in BUDGETS:
        raise TypeError(f"example_input: required dtype {' or '.join(BUDGETS)}, got {dtype}")
    if example.device.type != "cpu" or example.ndim < 2 or example.shape[0] < 1:
        got = f"shape {tuple(example.shape)} on {example.device}"
        raise ValueError(f"example_input: required [batch, ...] on the CPU with a batch of at least 1, got {got}")
    if batch != "dynamic" and (isinstance(batch, bool) or not isinstance(batch, int) or batch < 1):
        raise ValueError(f"batch: required 'dynamic' or an integer >= 1, got {batch!r}")
    folder = _checked_output(output, overwrite)
    _require_tools()  # before anything that takes long
    return _Request(model, example, _checked_target(target), None if batch == "dynamic" else batch, folder, report)


def _require_tools() -> None:
    openmp.cxx_compiler()
    if tuple(map(int, torch_interface(torch.__version__).split("."))) < _OLDEST_TORCH:
        wanted = ".".join(map(str, _OLDEST_TORCH))
        raise RuntimeError(f"compile: required PyTorch {wanted} or newer, got {torch.__version__}")


def _checked_target(name: str | None) -> NATarget:
    from tvm_na.build import target_for

    if name is not None and not isinstance(name, str):
        raise TypeError(f"target: required a target's name or None, got {type(name).__name__} {name!r}")
    target = target_for("cpu") if name is None else parse_target(name)
    if target.kind != "llvm":
        raise ValueError(f"target: required a CPU (models are compiled for CPUs so far), got {target.name}")
    check_runs_here(target)  # else it could not be checked
    return target


def _checked_output(output: Any, overwrite: bool) -> Path:
    if not isinstance(output, (str, os.PathLike)):
        raise TypeError(f"output: required a path, got {type(output).__name__} {output!r}")
    folder = Path(output).absolute()
    if not folder.parent.is_dir():
        raise ValueError(f"output: required a path in an existing folder, got {folder}")
    if folder.exists() and not overwrite:
        raise ValueError(f"output: required a path where nothing is, or overwrite, got {folder}")
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise ValueError(f"output: required a path where nothing or an artifact is, got {folder}")
    return folder


@contextmanager
def _in_place(folder: Path, overwrite: bool) -> Iterator[tuple[Path, Path]]:
    """A new folder that becomes ``folder`` if all goes well, and one for intermediate files; else neither stays."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        new, scratch, old = (Path(temporary) / name for name in ("new", "scratch", "old"))
        new.mkdir()
        scratch.mkdir()
        yield new, scratch
        if overwrite and folder.exists():
            folder.rename(old)
        new.rename(folder)


def _build(request: _Request, records: str | None, folder: Path, scratch: Path) -> dict[str, Any]:
    """Make every file but the manifest; what of the manifest is known then."""
    request.report("tracing the model")
    program = export_model(request.model, request.example, request.batch)
    attentions = attentions_of(program)
    problems = list(dict.fromkeys(attention.problem for attention in attentions))
    chosen = kernels.compile_objects(
        problems, request.target, scratch, records, lambda problem: request.report(f"compiling the kernel of {problem}")
    )
    request.report("linking the kernels")
    features = cpu_features(request.target)
    namespace = kernels.link_operators(problems, request.target, features, scratch, folder / OPERATORS)
    load_operators(folder / OPERATORS, namespace)
    request.report("compiling the rest with AOTInductor")
    with Operators(namespace, problems):
        calls = call_kernels(program, attentions, namespace)
        aoti.compile_program(program, request.target, folder / MODEL, scratch)
    return {
        "namespace": namespace,
        "problems": [
            {"problem": asdict(problem), "text": str(problem), "layers": calls[problem], "schedule": str(schedule)}
            for problem, schedule in zip(problems, chosen, strict=True)
        ],
        "target": {
            "name": request.target.name,
            "system": platform.system(),
            "architecture": platform.machine(),
            "cpu_features": list(features),
        },
    }


def _finish(request: _Request, folder: Path, facts: dict[str, Any]) -> None:
    """Check what was made against the eager reference, and write the manifest."""
    request.report("checking against the eager reference")
    right = reference_of(request.model, request.example, request.batch)
    manifest = Manifest(
        **facts,
        requires={"torch": torch_interface(torch.__version__)},
        built_with={**versions(), "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")},
        input=TensorSpec((request.batch, *request.example.shape[1:]), name_of(request.example.dtype)),
        outputs=[TensorSpec((request.batch, *out.shape[1:]), name_of(out.dtype)) for out in right.outputs[0]],
        returns_list=right.returns_list,
        check={},
        files={},
    )
    error, budget = right.error_of(Artifact(folder, manifest)), BUDGETS[name_of(request.example.dtype)]
    if not error <= budget:
        raise RuntimeError(f"artifact: required outputs within {budget:.0e} of the eager reference, got {error:.1e}")
    check = {"relative_error": error, "budget": budget, "batches": [len(images) for images in right.inputs]}
    write_manifest(folder, replace(manifest, check=check, files=describe_files(folder)))
