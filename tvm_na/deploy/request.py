"""What is asked of the compiler: its arguments, checked before anything that takes long.

Each check raises a TypeError or ValueError that names the argument, what was required and what came.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, fx, nn

from tvm_na.compilers import cxx
from tvm_na.deploy import int8
from tvm_na.deploy import precision as precisions
from tvm_na.deploy.check import name_of
from tvm_na.deploy.export import export_model, require_attention
from tvm_na.deploy.manifest import torch_interface
from tvm_na.deploy.rewrite import layered
from tvm_na.jit.runtime import runtime_library
from tvm_na.problems.base import HALVES
from tvm_na.problems.checks import check_bool
from tvm_na.targets.target import NATarget, check_runs_here, detect_target, parse_target
from tvm_na.wasm import link as wasm_link
from tvm_na.wasm import machine

Report = Callable[[str], None]
Format = Literal["aoti", "tvm", "wasm"]

#: The target of the format ``wasm``, unless another one is named.
WASM = "llvm-wasm32"
# The first whose Inductor compiles for another CPU than this one, and whose loader takes a folder.
_OLDEST_TORCH = (2, 13)


@dataclass(frozen=True)
class Request:
    """The arguments of :func:`tvm_na.deploy.compiler.compile`, checked and completed.

    Attributes:
        model: In the precision that is wanted; takes and gives what the artifact does.
        reference: The model whose eager outputs are right.
        precision: One of :data:`tvm_na.deploy.precision.BUDGETS`.
        runs_here: Whether this machine can run code for the target.
        batch: The only batch that the artifact is to take; None for any.
        weights_dtype: Of linear layers' and convolutions' weights, which the model's are rounded to; None for its own.
        autotune: Whether alternatives are measured: it was wanted, and the target is this machine's own.
        folder: The folder to make.
        runtime: TVM's runtime library for the target, to go into it; None for none.
    """

    model: nn.Module
    reference: nn.Module
    example: Tensor
    precision: str
    target: NATarget
    runs_here: bool
    batch: int | None
    weights_dtype: str | None
    format: Format
    records: str | None
    autotune: bool
    folder: Path
    runtime: Path | None
    report: Report

    @property
    def dtype(self) -> torch.dtype:
        """Of what is computed between layers."""
        return precisions.dtype_of(self.precision)


def checked_model(model: Any, example: Any, precision: Any) -> str:
    """The precision of an artifact of a model, which is the example's if none is wanted."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: required a torch.nn.Module, got {type(model).__name__}")
    elsewhere = sorted({str(p.device) for p in model.parameters() if p.device.type != "cpu"})
    if elsewhere:
        raise ValueError(f"model: required parameters on the CPU, got some on {', '.join(elsewhere)}")
    if not isinstance(example, Tensor):
        raise TypeError(f"example_input: required a torch.Tensor, got {type(example).__name__}")
    if precision is not None and precision not in precisions.BUDGETS:
        raise ValueError(f"precision: required {' or '.join(precisions.BUDGETS)} or None, got {precision!r}")
    halves = sorted({name_of(p.dtype) for p in model.parameters()} & set(HALVES))
    if precision is None and halves:
        raise ValueError(f"precision: required one for a model in {halves[0]}, got None")
    if precision is None and name_of(example.dtype) not in ("float32", "float64"):
        raise TypeError(f"example_input: required dtype float32 or float64, got {name_of(example.dtype)}")
    if example.device.type != "cpu" or example.ndim < 2 or example.shape[0] < 1:
        got = f"shape {tuple(example.shape)} on {example.device}"
        raise ValueError(f"example_input: required [batch, ...] on the CPU with a batch of at least 1, got {got}")
    return precision or name_of(example.dtype)


def check_precision(precision: str, format: Format) -> None:
    """ValueError for a precision that a format has not."""
    if format == "wasm" and precision in HALVES:
        raise ValueError(f"precision: required float32 or float64 with the format wasm, got {precision}")


def check_weights_dtype(weights_dtype: Any, precision: str, format: Format) -> None:
    """ValueError for weights of an unknown kind, or of one that a model in a precision or a format cannot have."""
    known = (None, "int8", "float16") if format == "wasm" else (None, "int8")
    if weights_dtype not in known:
        wanted = f"{' or '.join(map(str, known))} with the format {format}"
        raise ValueError(f"weights_dtype: required {wanted}, got {weights_dtype!r}")
    if weights_dtype is not None and precision != "float32":
        raise ValueError(f"weights_dtype: required None with the precision {precision}, got {weights_dtype}")


def checked_batch(batch: Any) -> int | None:
    """The only batch that an artifact takes; None for any."""
    if batch == "dynamic":
        return None
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
        raise ValueError(f"batch: required 'dynamic' or an integer >= 1, got {batch!r}")
    return batch


def traced(request: Request) -> fx.GraphModule:
    """The layers of a request's model, which attends: a graph of :func:`tvm_na.deploy.rewrite.layered`."""
    request.report("tracing the model")
    program = export_model(request.model, request.example, request.batch)
    require_attention(program)
    graph = layered(program.run_decompositions({}))
    if request.weights_dtype == "int8":
        int8.narrow(graph)
    if request.precision == "float16":
        precisions.round_weights(graph)
    precisions.widen_sums(graph)
    return graph


def check_format(format: Any) -> None:
    """ValueError for an unknown format, RuntimeError if a compiler for it is missing."""
    if format not in get_args(Format):
        raise ValueError(f"format: required one of {', '.join(get_args(Format))}, got {format!r}")
    if format == "wasm":
        wasm_link.require()
        machine.require()
        return
    cxx.command()
    if format == "aoti" and tuple(map(int, torch_interface(torch.__version__).split("."))) < _OLDEST_TORCH:
        wanted = ".".join(map(str, _OLDEST_TORCH))
        raise RuntimeError(f"compile: required PyTorch {wanted} or newer, got {torch.__version__}")


def checked_target(name: Any, format: Format) -> tuple[NATarget, bool]:
    """The target, and whether this machine can run it."""
    from tvm_na.jit.build import target_for

    if name is not None and not isinstance(name, str):
        raise TypeError(f"target: required a target's name or None, got {type(name).__name__} {name!r}")
    if name is None and format == "wasm":
        name = WASM
    target = target_for("cpu") if name is None else parse_target(name)
    if target.kind != "llvm":
        raise ValueError(f"target: required a CPU (models are compiled for CPUs so far), got {target.name}")
    if target.is_wasm != (format == "wasm"):
        wanted = f"{WASM} or {WASM}-relaxed" if format == "wasm" else "one of another CPU"
        raise ValueError(f"target: required {wanted} with the format {format}, got {target.name}")
    if target.is_wasm:
        return target, True  # in wasmtime
    try:
        check_runs_here(target)
    except ValueError:
        if format == "aoti":  # PyTorch's compiler asks this machine what instructions there are
            raise
        return target, False
    return target, True


def checked_autotune(autotune: Any, target: NATarget) -> bool:
    """Whether alternatives are measured: for another CPU they would be other ones' times."""
    return check_bool("autotune", autotune) and target.name == detect_target().name


def checked_runtime(file: Any, target: NATarget, format: Format) -> Path | None:
    """TVM's runtime library for an artifact: the one that was named, or the one at hand; None for none."""
    if file is not None:
        if not isinstance(file, (str, os.PathLike)):
            raise TypeError(f"runtime: required a path, got {type(file).__name__} {file!r}")
        if format != "tvm":
            raise ValueError(f"runtime: required the format tvm with it, got {format}")
        if not Path(file).is_file():
            raise ValueError(f"runtime: required an existing file, got {file}")
        return Path(file)
    is_for_here = target.triple.split("-")[0] in ("", platform.machine())
    return runtime_library() if format == "tvm" and is_for_here else None
