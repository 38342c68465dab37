"""``tvm-na info``: what is there, and which schedules a model's problems get."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tvm_na.cli import options
from tvm_na.cli.common import in_dtype, own_size, reports_errors, say, section, size_of

if TYPE_CHECKING:
    from tvm_na.problems.registry import Problem
    from tvm_na.targets.target import NATarget

Rows = list[tuple[object, ...]]
Dtype = Literal["float32", "float64", "float16", "bfloat16", "tf32"]


@reports_errors
def info(
    model: Annotated[
        str | None, typer.Option(help="Show only which schedule each problem of this model gets, and why.")
    ] = None,
    input_size: options.InputSize = None,
    training: Annotated[
        bool, typer.Option("--training", help="The problems of the model's training, with those of gradients.")
    ] = False,
    target: Annotated[
        str | None,
        typer.Option(
            help="Target of --model's kernels. For a GPU's, which need not be here: also what they would take."
        ),
    ] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Data type of --model; float32 if not given.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Batch size of what is estimated; 128 if not given.")] = None,
    gpu: Annotated[
        str | None, typer.Option(help="GPU that is estimated, such as H200; the first of the target if not given.")
    ] = None,
) -> None:
    """Show the machine, the target, versions, settings, the kernel cache and the tuning records."""
    if model is not None:
        _of_model(model, input_size or own_size(model), training, target, dtype, batch, gpu)
        return
    for name, given in (("training", training), ("target", target), ("dtype", dtype), ("batch", batch), ("gpu", gpu)):
        if given:
            raise ValueError(f"{name}: required --model with it, got none")
    from tvm_na import settings
    from tvm_na.measure.timing import versions

    section("machine", _machine())
    section("cuda", _cuda())
    section("versions", list(versions().items()))
    section("settings", settings.describe())
    section("kernel cache", _kernels())
    section("tuning records", _records())


def _machine() -> Rows:
    from tvm_na import settings
    from tvm_na.jit.build import current_target
    from tvm_na.targets.target import cpu_name

    target = current_target()
    if target.kind == "cuda":
        what = f"{target.arch}, {target.max_shared_bytes // 1024} KiB of shared memory per block"
    else:
        what = f"{target.cpu}, {target.vector_registers} vector registers of {target.vector_bytes} bytes"
    return [
        ("cpu", cpu_name()),
        ("cores", settings.available_cores()),
        ("threads", f"{settings.num_threads()} used by kernels"),
        ("target", f"{target.name} ({target.kind}, {what})"),
    ]


def _cuda() -> Rows:
    """The CUDA devices that PyTorch sees, and what would compile kernels for them."""
    import torch

    from tvm_na.cuda import toolchain
    from tvm_na.targets import cuda_arch as arch

    rows: Rows = []
    for index, capability in enumerate(arch.devices()):
        seen = torch.cuda.get_device_properties(index)
        try:
            target = f"cuda-{arch.arch_for(capability).name}"
        except ValueError as error:
            target = f"none ({error})"
        number = ".".join(map(str, capability))
        about = f"compute capability {number}, {seen.multi_processor_count} SMs, {seen.total_memory / 2**30:.0f} GiB"
        rows.append((f"cuda:{index}", f"{seen.name} ({about}), target {target}"))
    try:
        compiler = toolchain.find_compiler()
        found = f"{compiler.name} {compiler.version} ({compiler.where})"
    except RuntimeError as error:
        found = f"none ({error})"
    return [*(rows or [("devices", "none that PyTorch sees")]), ("compiler", found)]


def _kernels() -> Rows:
    from tvm_na import settings
    from tvm_na.jit import cache

    kernels = cache.entries()
    count = f"{len(kernels)}, {size_of(sum(entry.bytes for entry in kernels))}"
    return [("folder", settings.cache_dir()), ("kernels", count)]


def _records() -> Rows:
    from tvm_na.jit.build import current_target
    from tvm_na.records.files import shipped_folder, user_folder
    from tvm_na.records.read import records_in

    name = current_target().name
    rows: Rows = []
    for whose, folder in (("user's", user_folder(name)), ("shipped", shipped_folder(name))):
        try:
            records = records_in(folder)
        except OSError as error:
            rows.append((whose, "unreadable", str(error), folder))
            continue
        problems = len({record.problem for record in records})
        count = f"{len(records)} of {problems} problems" if records else "none"
        last = max((record.date[:10] for record in records), default="")
        rows.append((whose, count, f"last tuned {last}" if last else "", folder))
    return rows


def _of_model(
    name: str, size: int, training: bool, target: str | None, dtype: str | None, batch: int | None, gpu: str | None
) -> None:
    """The schedules of a model's problems; on a GPU's target also what their kernels would take."""
    from tvm_na.jit.build import current_target, is_supported
    from tvm_na.targets.gpus import gpu_of
    from tvm_na.targets.target import parse_target

    known = current_target() if target is None else parse_target(target)
    if target is None or known.kind != "cuda":
        for option, given in (("batch", batch), ("gpu", gpu)):
            if given:
                raise ValueError(f"{option}: required a GPU's --target with it, got {target or 'none'}")
    if gpu:
        gpu_of(known, gpu)
    problems = {in_dtype(p, dtype or "float32", known): n for p, n in _problems(name, size, training).items()}
    title = f"{name}, {size}x{size}{', training' * training}{f', {dtype}' if dtype else ''}"
    section(title, _schedules(name, size, training, known, dtype, problems))
    if target is not None and known.kind == "cuda":
        supported = {problem: count for problem, count in problems.items() if is_supported(problem, known)}
        _estimates(title, supported, known, gpu, batch)


def _estimates(title: str, problems: dict[Problem, int], target: NATarget, gpu: str | None, batch: int | None) -> None:
    """What kernels would take on a GPU; a line that says so where no rates are known of it."""
    from tvm_na.cli.static import show
    from tvm_na.targets.gpus import gpu_of
    from tvm_na.tune.options import GPU_BATCH

    try:
        rates = gpu_of(target, gpu)
    except ValueError as error:
        say(f"not estimated: {error}")
    else:
        show(title, problems, target, rates, batch or GPU_BATCH)


def _problems(name: str, size: int, training: bool) -> dict[Problem, int]:
    """The problems of a model, with the layers that pose each."""
    import torch

    from tvm_na.models import create_model, problems_of, training_problems_of

    with torch.device("meta"):  # weights play no part
        model = create_model(name)
    found: list[tuple[Problem, int]] = [*(training_problems_of if training else problems_of)(model, size).items()]
    return dict(found)


def _schedules(
    name: str, size: int, training: bool, target: NATarget, dtype: str | None, problems: dict[Problem, int]
) -> Rows:
    """A row for each problem: the layers that pose it, the problem, its schedule; then what could be tuned, and how."""
    from tvm_na.jit.build import explain, is_supported
    from tvm_na.records.select import select

    rows: Rows = []
    untuned = 0
    for problem, layers in problems.items():
        supported = is_supported(problem, target)
        schedule = explain(problem, target) if supported else f"no kernel: {problem.unsupported(target.kind)}"
        rows.append((f"{layers} layer{'s' * (layers != 1)}", problem, schedule))
        untuned += supported and select(problem, target).kind != "record"
    if untuned:
        options = f"{' --training' * training}{f' --dtype {dtype}' if dtype else ''} --target {target.name}"
        command = f"tvm-na tune {name} --input-size {size}{options}"
        rows.append(("tuning", f"{untuned} of {len(problems)} problems have no record of their own", command))
    return rows
