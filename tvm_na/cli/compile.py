"""``tvm-na compile``: a model as an artifact that runs without the compiler."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tvm_na.cli import options
from tvm_na.cli.classifiers import IMAGENET_CLASSES, load_model
from tvm_na.cli.common import console, needs_text, own_size, reports_errors, rounding_rows, rows_of, say, size_of, warn

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from tvm_na.deploy.manifest import Manifest


def _steps(out: Console, status: Status) -> Callable[[str], None]:
    """What is told each step as it begins: shows a spinner, and a line with the time of each that is over."""
    step, start = "", time.perf_counter()

    def begin(following: str) -> None:
        nonlocal step, start
        if step:
            out.print(f"{step}: {time.perf_counter() - start:.1f} s", markup=False, soft_wrap=True)
        step, start = following, time.perf_counter()
        status.update(step)

    return begin


@reports_errors
def compile_model(
    name: options.ModelName,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the artifact.")],
    weights: options.Weights = None,
    input_size: options.InputSize = None,
    num_classes: Annotated[int, typer.Option(min=1, help="Number of classes.")] = IMAGENET_CLASSES,
    batch: Annotated[
        str, typer.Option(metavar="dynamic|N", help="Batch size: dynamic for any, or this one alone.")
    ] = "dynamic",
    target: Annotated[str | None, typer.Option(help="CPU to compile for; this machine's if not given.")] = None,
    format: Annotated[
        Literal["aoti", "tvm", "wasm"],
        typer.Option(help="Runtime: PyTorch (aoti), TVM's own of 4 MB (tvm), or a browser, node, wasmtime (wasm)."),
    ] = "aoti",
    precision: Annotated[
        Literal["float32", "float64", "bfloat16", "float16"] | None,
        typer.Option(help="Data type of all tensors (float16: of weights alone); the model's own if not given."),
    ] = None,
    weights_dtype: Annotated[
        Literal["int8", "float16"] | None,
        typer.Option(help="Of linear layers' and convolutions' weights (float16: of the file, with wasm)."),
    ] = None,
    autotune: Annotated[
        bool, typer.Option(help="With aoti: measure whose kernel is the fastest for each linear layer.")
    ] = True,
    runtime: Annotated[
        Path | None, typer.Option(help="With tvm, for another architecture: its libtvm_runtime.so, to go into it.")
    ] = None,
    records: Annotated[
        Literal["all", "user", "shipped", "off"] | None, typer.Option(help="Tuning records that count.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an artifact that is there.")] = False,
) -> None:
    """Compile a model into an artifact that runs without the compiler; takes minutes."""
    import warnings
    from dataclasses import replace

    import torch

    from tvm_na.deploy.compiler import compile as compile_artifact
    from tvm_na.deploy.manifest import read_manifest
    from tvm_na.models.registry import get_spec

    if batch != "dynamic" and not batch.isdecimal():
        raise ValueError(f"batch: required dynamic or an integer >= 1, got {batch!r}")
    size = input_size or own_size(name)
    preprocessing = replace(get_spec(name).preprocessing, input_size=size)
    model = load_model(name, weights, num_classes, "compiled")
    out, start = console(), time.perf_counter()
    with out.status("") as status, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        steps = _steps(out, status)
        compile_artifact(
            model,
            torch.zeros(1, 3, size, size),
            target,
            batch if batch == "dynamic" else int(batch),
            precision,
            output=output,
            format=format,
            autotune=autotune,
            runtime=runtime,
            name=name,
            weights=None if weights is None else weights.name,
            weights_dtype=weights_dtype,
            preprocessing=preprocessing,
            records=records,
            overwrite=overwrite,
            report=steps,
        )
        steps("")
    _print_artifact(output, read_manifest(output.absolute()), time.perf_counter() - start)
    for warning in warned:
        if (text := str(warning.message)).startswith(("UNTUNED", "NOT CHECKED")):
            warn(text)


def _print_artifact(folder: Path, manifest: Manifest, seconds: float) -> None:
    error, budget = manifest.check.get("relative_error"), f"budget {manifest.check['budget']:.0e}"
    size = size_of(sum(file["bytes"] for file in manifest.files.values()))
    say(f"{folder.absolute()}: {size}, {seconds:.0f} s", style="bold green")
    linear = manifest.code.get("linear", [])
    reasons = {p["text"]: f"; {p['reason']}" for p in linear}
    rows = [
        ("model", f"{manifest.model['name']}, {manifest.model['parameters']:,} parameters"),
        ("weights", manifest.model["weights"] or "RANDOM"),
        ("precision", manifest.precision),
        ("input", manifest.input),
        ("output", ", ".join(map(str, manifest.outputs))),
        ("target", manifest.target["name"]),
        ("needs", needs_text(manifest)),
        *((p["text"], f"{p['layers']} layers, {p['schedule']}{reasons.get(p['text'], '')}") for p in manifest.problems),
        *((p["text"], f"{p['layers']} layers, AOTInductor{reasons[p['text']]}") for p in linear if not p["ours"]),
        ("check", f"NOT CHECKED, {budget}" if error is None else f"relative error {error:.1e}, {budget}"),
        *rounding_rows(manifest),
    ]
    console().print(rows_of(rows), soft_wrap=True)
