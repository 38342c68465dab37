"""``tvm_na.compile``: a model, our kernels for its attention and AOTInductor for the rest, as one checked artifact."""

from __future__ import annotations

import datetime
import os
import platform
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tvm_na.deploy import int8
from tvm_na.deploy import weights as weight_files
from tvm_na.deploy.aoti import build as route_aoti
from tvm_na.deploy.artifact import load, made_of
from tvm_na.deploy.called import Artifact
from tvm_na.deploy.check import name_of, reference_of
from tvm_na.deploy.manifest import EXPECTED, Manifest, TensorSpec, describe_files, write_manifest
from tvm_na.deploy.place import checked_output, in_place
from tvm_na.deploy.precision import BUDGETS, in_precision
from tvm_na.deploy.relax import build as route_tvm
from tvm_na.deploy.request import (
    Format,
    Report,
    Request,
    check_format,
    check_precision,
    check_weights_dtype,
    checked_autotune,
    checked_batch,
    checked_model,
    checked_runtime,
    checked_target,
)
from tvm_na.deploy.wasm import build as route_wasm
from tvm_na.images.preprocessing import Preprocessing
from tvm_na.measure.timing import versions
from tvm_na.targets.target import cpu_features

_ROUTES = {"aoti": route_aoti.build, "tvm": route_tvm.build, "wasm": route_wasm.build}


def compile(
    model: nn.Module,
    example_input: Tensor,
    target: str | None = None,
    batch: int | str = "dynamic",
    precision: str | None = None,
    *,
    output: str | os.PathLike[str],
    format: Format = "aoti",
    name: str | None = None,
    weights: str | None = None,
    weights_dtype: str | None = None,
    preprocessing: Preprocessing | None = None,
    records: str | None = None,
    autotune: bool = True,
    runtime: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    report: Report | None = None,
) -> Artifact | None:
    """Compile a model into an artifact: a folder that runs without the compiler and without tvm_na.

    The model is traced in evaluation mode and is not changed. Every attention of tvm_na in it becomes a kernel, made
    from the best tuning record as for a call. With ``aoti`` linear layers become kernels of ours where those are
    faster, the rest is compiled by AOTInductor, weights included, and the artifact runs with PyTorch alone. With
    ``tvm`` all linear layers, convolutions and norms become kernels of ours, the weights lie beside the code, and it
    runs with TVM's runtime of 4 MB alone. The result is run on random inputs and compared with the eager reference;
    only if they agree it is moved to ``output``. Takes minutes.

    Args:
        model: On the CPU; takes one tensor and gives one tensor, or a list of them, all ``[batch, ...]``.
        example_input: ``[batch, ...]``, float32 or float64, with a precision also halves; its values and batch play no
            role.
        target: The CPU to compile for, by name; None for TVM_NA_TARGET, or this machine's.
            With ``aoti`` one that this machine can run. With ``tvm`` any: what cannot run here cannot be checked here,
            so an input and the right outputs come with it.
        batch: ``"dynamic"`` for any, or the only one that the artifact is to take.
        precision: ``float32`` or ``float64``, which the model is converted to; None for its own. ``bfloat16`` for that
            between layers, sums float32; ``float16`` for weights of linear layers and convolutions, the rest float32.
            With both the artifact takes and gives float32.
        output: The folder to make.
        format: ``aoti`` or ``tvm``.
        name: What to call the model in the manifest; None for its class.
        weights: Where its weights come from, for the manifest; None says that they are random.
        weights_dtype: ``int8`` for weights of linear layers and convolutions of one byte, with a scale for each output
            channel, in a float32 model; None for weights in the model's precision.
        preprocessing: How an image becomes an input, for the manifest.
        records: Which tuning records count: ``all``, ``user``, ``shipped`` or ``off``; None for TVM_NA_RECORDS.
        autotune: With ``aoti``, for this machine's own target: whether linear layers are measured, our kernels, the
            library's and Inductor's own C++, which takes as long again. Else those that were tuned get our kernels.
        runtime: With ``tvm``, the ``libtvm_runtime.so`` that goes into the artifact; None for the installed one, or for
            none where the target has another architecture: then apache-tvm must be installed where it runs.
        overwrite: Whether an artifact at ``output`` may be replaced, with nothing else in its folder.
        report: Called with a line before each step.

    Returns:
        The artifact, loaded; None if this machine cannot run it.

    Warns:
        UserWarning: ``tvm``: kernels have no tuning record, or the artifact could not be checked.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
        NotImplementedError: the model has no attention, or one for which there is no kernel.
        RuntimeError: a compiler is missing or fails, the artifact's numbers are wrong, or rounding the weights changes
            them by more than :data:`tvm_na.deploy.int8.BUDGETS`.
    """
    check_format(format)
    chosen_precision = checked_model(model, example_input, precision)
    check_precision(chosen_precision, format)
    check_weights_dtype(weights_dtype, chosen_precision, format)
    wanted, reference, example = in_precision(model, example_input, chosen_precision)
    chosen, runs_here = checked_target(target, format)
    request = Request(
        model=wanted,
        reference=reference,
        example=example,
        precision=chosen_precision,
        target=chosen,
        runs_here=runs_here,
        batch=checked_batch(batch),
        weights_dtype=weights_dtype,
        format=format,
        records=records,
        autotune=checked_autotune(autotune, chosen),
        folder=checked_output(output, overwrite),
        runtime=checked_runtime(runtime, chosen, format),
        report=report or (lambda line: None),
    )
    rounding = None
    if weights_dtype is not None:
        request.report("rounding the weights")
        rounded = int8.rounded(wanted, weights_dtype)
        request = replace(request, model=rounded, reference=rounded)
        rounding = int8.rounding_of(wanted, rounded, example, request.batch, weights_dtype)
    with in_place(request.folder, overwrite) as (folder, scratch):
        facts = _ROUTES[request.format](request, folder, scratch)
        identity = {"name": name or type(model).__name__, "parameters": sum(p.numel() for p in model.parameters())}
        facts["model"] = {**identity, "weights": weights, "weights_dtype": weights_dtype}
        facts["check"] = {} if rounding is None else {"rounding": asdict(rounding)}
        facts["preprocessing"] = None if preprocessing is None else asdict(preprocessing)
        _finish(request, folder, facts)
    return load(request.folder) if request.runs_here else None


def _finish(request: Request, folder: Path, facts: dict[str, Any]) -> None:
    """Check what was made against the eager reference, and write the manifest."""
    request.report("checking against the eager reference")
    right, dtype = reference_of(request.reference, request.example, request.batch), name_of(request.example.dtype)
    budget = BUDGETS[request.precision]
    manifest = Manifest(
        **facts,
        kind=request.format,
        precision=request.precision,
        target={
            "name": request.target.name,
            "system": "any" if request.target.is_wasm else platform.system(),
            "architecture": request.target.triple.split("-")[0] or platform.machine(),
            "cpu_features": list(cpu_features(request.target)),
        },
        built_with={**versions(), "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")},
        input=TensorSpec((request.batch, *request.example.shape[1:]), dtype),
        outputs=[TensorSpec((request.batch, *out.shape[1:]), name_of(out.dtype)) for out in right.outputs[0]],
        returns_list=right.returns_list,
        files={},
    )
    manifest.check["budget"] = budget
    if request.runs_here:
        error = right.error_of(made_of(folder, manifest))
        if not error <= budget:
            wanted = f"outputs within {budget:.0e} of the eager reference"
            raise RuntimeError(f"artifact: required {wanted}, got {error:.1e}")
        manifest.check.update(relative_error=error, batches=[len(images) for images in right.inputs])
    else:
        # An input and the right outputs, for whoever can run the artifact.
        outputs = {f"output_{number}": out.numpy() for number, out in enumerate(right.outputs[0])}
        weight_files.write_weights(folder / EXPECTED, {"input": right.inputs[0].numpy(), **outputs})
        warnings.warn(f"NOT CHECKED: this machine cannot run code for {request.target.name}", stacklevel=3)
    write_manifest(folder, replace(manifest, files=describe_files(folder)))
