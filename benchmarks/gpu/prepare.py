"""Makes the folder of the nine-minute run, without a GPU: ``python -m benchmarks.gpu.prepare FOLDER``.

Kernels are built ahead (half an hour on two cores; the same command goes on where it was), and TVM's runtime and all
sources lie beside them. In it is ``run.sh OUT``, the one command of the run.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.gpu import estimated
from benchmarks.gpu.folder import KERNELS, RunFolder
from benchmarks.gpu.plan import Plan
from tvm_na.cli.tune_package import building, progress
from tvm_na.packages.package import RUNTIME
from tvm_na.packages.prebuild import Which, prebuild
from tvm_na.packages.runtime import add_runtime
from tvm_na.problems.registry import Problem
from tvm_na.targets.target import parse_target

#: What a machine that is lent takes with a checkout: it has 64 in all.
MOST_BYTES = 60 * 2**20
_RUN = f"""#!/bin/sh
# sh run.sh OUT [options]: the run, of at most 560 seconds (docs/guide/benchmarks.md), by PYTHON or python3.
folder=$(cd "$(dirname "$0")" && pwd)
out=$(mkdir -p "$1" && cd "$1" && pwd) || exit 2
shift
cd "$folder" # elsewhere Python may find other sources first: those of a checkout
export PYTHONPATH="$folder/{KERNELS}/{RUNTIME}${{PYTHONPATH:+:$PYTHONPATH}}"
exec "${{PYTHON:-python3}}" -m benchmarks.gpu "$folder" --output "$out" "$@"
"""


def prepare(path: Path, plan: str, target: str, python: str, jobs: int, console: Console) -> int:
    """Make or complete a folder; its bytes.

    Raises:
        ValueError: a default kernel is missing, or a name is none.
        RuntimeError: a compiler is missing, kernels cannot be built, or the folder is too large.
    """
    path.mkdir(parents=True, exist_ok=True)
    folder = RunFolder.describe(path, plan)
    wanted: dict[Which, tuple[Problem, ...]] = {"defaults": folder.plan.defaults(), "all": folder.plan.searched}
    for which, problems in wanted.items():
        with building(console) as observer:
            package, state = prebuild(
                problems, parse_target(target), path / KERNELS, jobs=jobs, which=which, observer=observer
            )
        console.print(f"{len(problems)} problems, {which}: {state.ending}, {progress(state)}", highlight=False)
        if state.failed or not state.ending.startswith("all"):
            raise RuntimeError(f"kernels: required all, got {state.ending}: {'; '.join(state.messages)}")
    estimated.write(folder, parse_target(target), lambda text: console.print(text, markup=False, highlight=False))
    runtime = add_runtime(path / KERNELS, python)
    ignored = shutil.ignore_patterns("__pycache__", "results")
    shutil.copytree(Path(__file__).parents[1], runtime / "benchmarks", ignore=ignored, dirs_exist_ok=True)
    (path / "run.sh").write_text(_RUN, encoding="utf-8")
    check_defaults(RunFolder(path))
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    console.print(f"{path}: {len(package.kernels)} kernels, {size / 2**20:.1f} MiB", highlight=False)
    if size > MOST_BYTES:
        raise RuntimeError(f"folder: required at most {MOST_BYTES / 2**20:g} MiB, got {size / 2**20:.1f}")
    return size


def check_defaults(folder: RunFolder) -> None:
    """ValueError if a problem of the plan has no default kernel."""
    plan: Plan = folder.plan
    for problem in (*plan.searched, *plan.defaults()):
        if folder.package.default_of(problem) is None:
            why = [refused.reason for refused in folder.package.refused if refused.problem == problem]
            raise ValueError(f"package: required the default kernel of {problem}, got none: {'; '.join(why)}")


def main(
    folder: Annotated[Path, typer.Argument(help="Folder to make or to complete.")],
    target: Annotated[str, typer.Option(help="Whose GPU: cuda-sm_90 is that of an H100 or H200.")] = "cuda-sm_90",
    python: Annotated[str, typer.Option(help="Version of Python there; this one's if empty.")] = "3.12",
    jobs: Annotated[int, typer.Option(min=0, help="Kernels built at once; 0 for one per core.")] = 0,
    small: Annotated[bool, typer.Option(help="A few small problems, for a test.")] = False,
) -> None:
    """Make the folder of the nine-minute run."""
    console = Console()
    try:
        prepare(folder, "small" if small else "full", target, python, jobs, console)
    except (RuntimeError, ValueError) as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    typer.run(main)
