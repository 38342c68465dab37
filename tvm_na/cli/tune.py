"""``tvm-na tune``: search schedules for the problems of a model, or for any others."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tvm_na.cli import options
from tvm_na.cli.common import console, in_dtype, own_size, reports_errors

if TYPE_CHECKING:
    from tvm_na.measure.rpc_devices import RpcDevices
    from tvm_na.targets.target import NATarget
    from tvm_na.tune.options import TuneOptions
    from tvm_na.tune.tasks import TuneTask

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_duration(text: str) -> float:
    """Seconds of a duration such as "90s", "30m" or "2h"; minutes where there is no unit.

    Raises:
        ValueError: it is something else, or zero.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if found is None or float(found[1]) == 0:
        raise ValueError(f"time_limit: required minutes, or a number with s, m or h, got {text!r}")
    return float(found[1]) * _UNITS[found[2] or "m"]


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of "224" or "224x192"; ValueError for anything else."""
    parts = text.split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"input_size: required pixels such as 224 or 224x192, got {text!r}")
    return int(parts[0]), int(parts[-1])


def _tasks_of_model(
    name: str,
    input_sizes: Sequence[str],
    dtype: str,
    whole: bool,
    weights_dtype: str | None,
    training: bool,
    target: NATarget,
) -> list[TuneTask]:
    from tvm_na.models import create_model, problems_of, training_problems_of
    from tvm_na.tune.tasks import TuneTask, merged, tasks_of

    sizes = [parse_size(text) for text in input_sizes or [str(own_size(name))]]
    model = create_model(name)
    if whole:
        import torch

        from tvm_na.deploy.relax.problems import problems_of_whole

        with console().status("tracing the model"):
            found: list[Any] = [problems_of_whole(model, torch.zeros(1, 3, *size), weights_dtype) for size in sizes]
    else:
        found = [(training_problems_of if training else problems_of)(model, size) for size in sizes]
    tasks = [task for problems in found for task in tasks_of(problems)]
    return merged([TuneTask(in_dtype(task.problem, dtype, target), task.weight) for task in tasks])


def _best_recorded(tasks: Sequence[TuneTask], folder: Path, threads: int) -> list[float | None]:
    """Seconds of each task's fastest record, for each sample of its batch."""
    from tvm_na.records.read import records_in

    records = [r for r in records_in(folder) if r.threads == threads]
    return [min((r.seconds_per_sample for r in records if r.problem == t.problem), default=None) for t in tasks]


def _dry_run(tasks: Sequence[TuneTask], target: NATarget, folder: Path, threads: int, batch: int) -> None:
    from tvm_na.cli.tune_progress import print_plan
    from tvm_na.tune.options import GPU_BATCH
    from tvm_na.tune.tasks import formulations_of

    on_gpu, out = target.kind == "cuda", console()
    threads = 1 if on_gpu or target.is_wasm else threads
    with out.status("building the spaces"):
        spaces = [formulations_of(task.problem, target) for task in tasks]
    print_plan(out, tasks, spaces, _best_recorded(tasks, folder, threads))
    if on_gpu:
        conditions = f"a batch of {batch}" if batch else f"a batch of {GPU_BATCH}, or of what fits"
    else:
        conditions = f"{threads} threads" + (f" and a batch of {batch}" if batch > 1 else "")
    out.print(f"target {target.name}, {conditions}, records in {folder}", markup=False, soft_wrap=True)


def _rpc_devices(rpc: str | None, key: str | None) -> RpcDevices | None:
    if rpc is None:
        if key is not None:
            raise ValueError("rpc: required HOST:PORT of a tracker with --rpc-key, got none")
        return None
    from tvm_na.measure.rpc_devices import RpcDevices

    return RpcDevices.parse(rpc, key or "")


def _check_sources(sources: Mapping[str, Any], of_model: Mapping[str, Any], backward: bool) -> None:
    """ValueError unless problems come from one source, and options with the one that they are about."""
    found = [name for name, given in sources.items() if given]
    if len(found) != 1:
        raise ValueError(
            f"problems: required one of MODEL, --problems, --size and --from, got {' and '.join(found) or 'none'}"
        )
    for option, given in of_model.items():
        if given and not sources["MODEL"]:
            raise ValueError(f"{option}: required a MODEL with it, got none")
    if of_model["training"] and of_model["whole_model"]:
        raise ValueError("training: required without --whole-model, whose other layers have no gradients here")
    if of_model["weights_dtype"] and not of_model["whole_model"]:
        raise ValueError(f"weights_dtype: required --whole-model with it, got {of_model['weights_dtype']} alone")
    if backward and not sources["--size"]:
        raise ValueError('backward: required --size with it (a file says it as "operator", a MODEL has --training)')


@reports_errors
def tune(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Name of a model, such as nat_tiny.")] = None,
    input_size: Annotated[
        list[str] | None, typer.Option(help="Images' size: 224 or 224x192; MODEL's own if not given. Can be repeated.")
    ] = None,
    whole_model: Annotated[
        bool, typer.Option("--whole-model", help="MODEL's linear layers and convolutions too.")
    ] = False,
    weights_dtype: Annotated[
        Literal["int8"] | None, typer.Option(help="With --whole-model: as of tvm-na compile.")
    ] = None,
    training: Annotated[
        bool, typer.Option("--training", help="MODEL's training: attention that keeps its log-sum-exp, and gradients.")
    ] = False,
    problems: Annotated[Path | None, typer.Option(help="JSON file with a list of problems.")] = None,
    size: Annotated[tuple[int, int] | None, typer.Option(help="A problem spelled out: height and width.")] = None,
    heads: options.Heads = 2,
    head_dim: options.HeadDim = 32,
    kernel_size: options.KernelSize = 7,
    dilation: options.Dilation = 1,
    stride: options.Stride = 1,
    causal: options.Causal = False,
    rpb: options.Bias = False,
    backward: Annotated[bool, typer.Option("--backward", help="The gradients of the problem spelled out.")] = False,
    dtype: Annotated[
        Literal["float32", "float64", "float16", "bfloat16", "tf32"],
        typer.Option(help="Data type of all tensors, of MODEL's too; tf32 is for GPUs."),
    ] = "float32",
    target: Annotated[
        str | None, typer.Option(help="Target, such as cuda; default: TVM_NA_TARGET, or this machine's CPU.")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Number of measurements, with those already recorded.")] = 1000,
    time_limit: Annotated[str | None, typer.Option(help="Time limit in minutes, or with a unit: 90s, 30m, 2h.")] = None,
    jobs: Annotated[int, typer.Option(min=0, help="Number of candidates compiled at once; 0 for one per core.")] = 0,
    seed: options.Seed = 0,
    threads: Annotated[int, typer.Option(min=0, help="Threads of a CPU kernel; 0 for what production uses.")] = 0,
    batch: Annotated[int, typer.Option(min=0, help="Batch size; 0 for 1 on a CPU, 128 on a GPU.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Folder of the records; default: the user's.")] = None,
    cold_cache: Annotated[bool, typer.Option("--cold-cache", help="Flush caches before each repeat.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be tuned.")] = False,
    rpc: Annotated[str | None, typer.Option(help="HOST:PORT of an RPC tracker: measure on its devices.")] = None,
    rpc_key: Annotated[str | None, typer.Option(help="Key of the RPC devices.")] = None,
    prebuild: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Build all points for a GPU into a package, measure nothing.")
    ] = None,
    only_defaults: Annotated[
        bool,
        typer.Option("--only-defaults", help="Of each formulation and sketch the default point alone (--prebuild)."),
    ] = False,
    python: Annotated[str, typer.Option(help="Version of Python where --prebuild's package is measured.")] = "",
    from_: Annotated[
        Path | None,
        typer.Option("--from", metavar="DIR", help="Measure the kernels of a package on this machine's GPU."),
    ] = None,
) -> None:
    """Search schedules by building and measuring. Ctrl-C loses nothing; the same command continues.

    The problems are those of MODEL, those of a file, or one that is spelled out from --size on.
    """
    of_model: dict[str, Any] = {"input_size": input_size, "whole_model": whole_model, "training": training}
    of_model["weights_dtype"] = weights_dtype
    sources = {"MODEL": model, "--problems": problems, "--size": size, "--from": from_}
    _check_sources(sources, of_model, backward)
    seconds = None if time_limit is None else parse_duration(time_limit)
    if from_:
        from tvm_na.cli.tune_package import measure

        return measure(from_, output, seconds, batch, seed)
    devices = _rpc_devices(rpc, rpc_key)
    if not dry_run:
        from tvm_na.measure import worker_pool as workers

        workers.start_server()  # imports TVM while this process imports PyTorch
    from tvm_na import settings
    from tvm_na.records.files import user_folder
    from tvm_na.targets.target import parse_target

    chosen = parse_target(target or settings.target_name())
    if model:
        tasks = _tasks_of_model(model, input_size or [], dtype, whole_model, weights_dtype, training, chosen)
    elif problems:
        from tvm_na.tune.tasks import tasks_from_file

        tasks = tasks_from_file(problems)
    else:
        from tvm_na.problems.attention import NAProblem
        from tvm_na.problems.backward import BackwardProblem
        from tvm_na.tune.tasks import TuneTask

        problem = NAProblem.make(
            size or (), kernel_size, heads, head_dim, stride=stride, dilation=dilation, is_causal=causal, bias=rpb
        )
        tasks = [TuneTask(in_dtype(BackwardProblem(problem) if backward else problem, dtype, chosen))]
    if dry_run:
        return _dry_run(tasks, chosen, output or user_folder(chosen.name), threads or settings.num_threads(), batch)
    if prebuild:
        from tvm_na.cli.tune_package import build

        return build(tasks, chosen, prebuild, jobs, "defaults" if only_defaults else "all", python)
    from tvm_na.tune.options import TuneOptions

    _tune(tasks, chosen, TuneOptions(trials, seconds, jobs, seed, threads, batch, cold_cache), output, devices)
    return None


def _tune(
    tasks: Sequence[TuneTask], target: NATarget, how: TuneOptions, output: Path | None, devices: RpcDevices | None
) -> None:
    from tvm_na.cli import tune_progress as tune_display
    from tvm_na.tune import tune as run

    out = console()
    try:
        with tune_display.observer(out) as observer:
            result = run(tasks, target, how, output=output, observer=observer, devices=devices)
    except KeyboardInterrupt:  # before there was anything to keep, or the second one
        raise typer.Exit(130) from None
    tune_display.print_summary(out, result.state, result.folder)
    if result.state.ending == "interrupted":
        raise typer.Exit(130)
