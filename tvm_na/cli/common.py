"""What the commands share: where they print and how they fail."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from tvm_na.deploy.manifest import Manifest
    from tvm_na.problems.attention import NAProblem
    from tvm_na.problems.registry import Problem
    from tvm_na.targets.target import NATarget

P = ParamSpec("P")
R = TypeVar("R")


def console() -> Console:
    """Where results go. Made anew for each command, since standard output may have been replaced."""
    return Console(highlight=False)


def errors() -> Console:
    """Where errors and warnings go."""
    return Console(stderr=True, highlight=False)


def warn(message: str) -> None:
    """Say something that must not be overlooked."""
    errors().print(Text(f"warning: {message}", style="bold yellow"), soft_wrap=True)


def say(message: str, style: str = "") -> None:
    """A line among the results, as it is."""
    console().print(Text(message, style=style), soft_wrap=True)


def fail(message: str, code: int = 2) -> typer.Exit:
    """Print an error; what is to be raised after it."""
    errors().print(Text(f"error: {message}", style="bold red"), soft_wrap=True)
    return typer.Exit(code)


def reports_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Let what a user can cause end in one red message and exit code 2, without a traceback."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except (ValueError, TypeError, OSError) as error:
            raise fail(str(error)) from error
        except RuntimeError as error:  # no kernel for such a problem, no compiler, no package, no place for the cache
            if type(error) not in (RuntimeError, NotImplementedError):  # errors of TVM derive from the former
                raise
            raise fail(str(error)) from error

    return wrapper


def build(problems: Iterable[NAProblem]) -> None:
    """Build the kernels of ``problems`` that are not in the cache; RuntimeError where that is impossible."""
    from tvm_na.jit.progress import build_kernels

    build_kernels(problems, console())


def own_size(model: str) -> int:
    """Pixels in height and width of the images that a model is made for; ValueError for an unknown name."""
    from tvm_na.models.registry import get_spec

    return get_spec(model).preprocessing.input_size


def in_dtype(problem: Problem, dtype: str, target: NATarget) -> Problem:
    """The problem in another dtype; in TF32 where tensor cores serve it, and else in float32, as calls are."""
    if dtype == "tf32":
        from tvm_na.ops.tf32 import in_tf32
        from tvm_na.problems.attention import NAProblem

        exact = in_dtype(problem, "float32", target)
        return (in_tf32(exact, target) or exact) if isinstance(exact, NAProblem) else exact
    return problem.with_dtype(dtype)


def size_of(count: float) -> str:
    """Bytes for people, such as ``"1.5 MB"``."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def rows_of(pairs: list[tuple[Any, ...]]) -> Any:
    """A borderless table of rows, the first column in bold."""
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    for pair in pairs:
        table.add_row(*(Text(str(cell)) for cell in pair))
    return table


def precision_text(manifest: Manifest) -> str:
    """The precision of an artifact, and what it costs."""
    error, budget = manifest.check.get("relative_error"), f"budget {manifest.check['budget']:.0e}"
    told = "not measured" if error is None else f"{error:.1e}"
    return f"{manifest.precision}, relative error when it was made {told}, {budget}"


def needs_text(manifest: Manifest) -> str:
    """What an artifact runs with."""
    if manifest.kind == "wasm":
        return "a browser or node; here the package wasmtime"
    return ", ".join(f"{package} {version}" for package, version in manifest.requires.items())


def rounding_rows(manifest: Manifest) -> list[tuple[str, object]]:
    """What an artifact's narrower weights change; no row where it has none."""
    if (found := manifest.rounding) is None:
        return []
    error = f"relative error {found['relative_error']:.1e} to {manifest.input.dtype}, budget {found['budget']:.0e}"
    same, inputs = found["same_class"], found["inputs"]
    classes = "" if same is None else f"; the same class for {same} of {inputs} random inputs"
    return [(f"{manifest.weights_dtype} weights", f"{error}{classes}")]


def section(title: str, rows: list[tuple[Any, ...]]) -> None:
    """Rows under a title, and an empty line."""
    say(title, style="bold cyan")
    console().print(rows_of(rows), "")


def records_folder(given: Path | None, target: str | None = None) -> Path:
    """An existing folder of records: the one that was given, or the user's for a target (None: the current one).

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: there is no such target.
    """
    from tvm_na import settings
    from tvm_na.records.files import shipped_folder, user_folder
    from tvm_na.targets.target import parse_target

    name = parse_target(target or settings.target_name()).name
    folder, shipped = given or user_folder(name), shipped_folder(name)
    if not folder.is_dir():
        hint = "" if given or not shipped.is_dir() else f" (those that came with tvm_na are in {shipped})"
        raise FileNotFoundError(f"records: required an existing folder, got {folder}{hint}")
    return folder
