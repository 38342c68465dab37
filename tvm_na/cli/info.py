"""``tvm-na info``: what is there, and which schedules a model's problems get."""

from __future__ import annotations

from typing import Annotated

import typer

from tvm_na.cli import options
from tvm_na.cli.common import own_size, reports_errors, section, size_of

Rows = list[tuple[object, ...]]


@reports_errors
def info(
    model: Annotated[
        str | None, typer.Option(help="Show only which schedule each problem of this model gets, and why.")
    ] = None,
    input_size: options.InputSize = None,
    training: Annotated[
        bool, typer.Option("--training", help="The problems of the model's training, with those of gradients.")
    ] = False,
) -> None:
    """Show the machine, the target, versions, settings, the kernel cache and the tuning records."""
    if model is not None:
        size = input_size or own_size(model)
        title = f"{model}, {size}x{size}{', training' * training}"
        section(title, _schedules(model, size, training))
        return
    if training:
        raise ValueError("training: required --model with it, got none")
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


def _schedules(name: str, input_size: int, training: bool) -> Rows:
    """A row for each problem: the layers that pose it, the problem, its schedule; then what could be tuned, and how."""
    import torch

    from tvm_na.jit.build import current_target, explain, is_supported
    from tvm_na.models import create_model, problems_of, training_problems_of
    from tvm_na.records.select import select

    target, untuned = current_target(), 0
    rows: Rows = []
    with torch.device("meta"):  # weights play no part
        model = create_model(name)
    problems = (training_problems_of if training else problems_of)(model, input_size)
    for problem, layers in problems.items():
        supported = is_supported(problem, target)
        schedule = explain(problem, target) if supported else f"no kernel: {problem.unsupported(target.kind)}"
        rows.append((f"{layers} layer{'s' * (layers != 1)}", problem, schedule))
        untuned += supported and select(problem, target).kind != "record"
    if untuned:
        command = f"tvm-na tune {name} --input-size {input_size}{' --training' * training} --target {target.name}"
        rows.append(("tuning", f"{untuned} of {len(problems)} problems have no record of their own", command))
    return rows
