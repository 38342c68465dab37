"""``import natten`` for code that cannot be edited: modules, and a distribution that says what it is."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from tvm_na.compat.natten import modules, release

_OURS = "tvm_na.compat.natten"

_SUBMODULES = (
    *("backends", "context", "functional", "modules", "types", "version"),
    *("utils", "utils.checks", "utils.log", "utils.varlen"),
)

#: Modules of releases that hold one class, or operators that lie elsewhere here.
_CLASSES = {f"{name}{rank}d": rank for name in ("na", "natten") for rank in (1, 2, 3)}

#: Parts of NATTEN that are not served, and why.
_MISSING = {
    "autotuner": "kernels are tuned ahead of time, by tvm-na tune",
    "flex": "there is no FlexAttention here; na1d, na2d and na3d serve every device",
    "flops": "FLOP counts of NATTEN's autograd functions; see tvm_na.NAProblem.useful_flops",
    "libnatten": "NATTEN's compiled library",
    "_libnatten": "NATTEN's compiled library",
    "nested": "nested tensors have no kernels here",
    "ops": "bindings of NATTEN's compiled library",
    "profiler": "it profiles NATTEN's kernels; tvm-na bench measures tvm_na's",
    "profiling_utils": "it profiles NATTEN's kernels; tvm-na bench measures tvm_na's",
    "token_permute": "a step of NATTEN's kernels for Hopper and Blackwell",
}


class _Distribution(Distribution):
    """What ``importlib.metadata`` says of the package natten: that it is tvm_na."""

    def read_text(self, filename: str) -> str | None:
        about = "Summary: Not NATTEN: its interface, served by tvm_na.compat.natten\n"
        metadata = f"Metadata-Version: 2.1\nName: natten\nVersion: {release.version()}\n{about}"
        return {"METADATA": metadata, "top_level.txt": "natten\n"}.get(filename)

    def locate_file(self, path: Any) -> Any:
        return Path(__file__).parent / path


class _Finder(DistributionFinder):
    """Knows the distribution, and says of modules under natten that are not served why that is so."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith("natten."):
            return None
        reason = _MISSING.get(fullname.split(".")[1], "tvm_na has no such part")
        raise ModuleNotFoundError(
            f"{fullname}: required a module that tvm_na serves in NATTEN's place, got one it does not: {reason}",
            name=fullname,
        )

    def find_distributions(
        self,
        context: DistributionFinder.Context = DistributionFinder.Context(),  # noqa: B008
    ) -> Iterator[Distribution]:
        if context.name is None or context.name.lower() == "natten":
            yield _Distribution()


_finder = _Finder()
_replaced: dict[str, ModuleType] = {}


def _under_natten() -> dict[str, ModuleType]:
    return {name: module for name, module in sys.modules.items() if name.split(".")[0] == "natten"}


def is_installed() -> bool:
    """Whether ``import natten`` gives tvm_na's."""
    return _finder in sys.meta_path


def _real_natten() -> str | None:
    """Where NATTEN itself is, if it is installed; a folder without code does not count."""
    if "natten" in sys.modules:
        return getattr(sys.modules["natten"], "__file__", None) or "a module without a file"
    spec = importlib.util.find_spec("natten")
    return None if spec is None else spec.origin


@functools.cache  # the package keeps it as an attribute, also when it is installed again
def _module_of_class(name: str, rank: int) -> ModuleType:
    """``natten.na2d`` of 0.17, ``natten.natten2d`` of 0.14 to 0.17: modules with one class."""
    module = ModuleType(f"natten.{name}", f"NeighborhoodAttention{rank}D, where releases up to 0.17 had it.")
    module.__spec__ = ModuleSpec(module.__name__, None, origin=_OURS)
    setattr(module, f"NeighborhoodAttention{rank}D", getattr(modules, f"NeighborhoodAttention{rank}D"))
    if rank == 2:
        module.NeighborhoodAttention = modules.NeighborhoodAttention  # type: ignore[attr-defined]
    return module


def install(version: str | None = None, *, force: bool = False) -> None:
    """Let ``import natten`` and imports of its modules give tvm_na's, from now on, in this process.

    Call it before client code is imported: ``transformers`` asks once whether there is a natten. Specs and
    ``importlib.metadata`` know the name too, with a summary that says whose it is.

    Args:
        version: The release of NATTEN that client code was written for. It is what ``natten.__version__`` says, and
            how calls are read that releases read differently (:func:`assume_release`). None: 0.21.6, and such calls
            are errors.
        force: Whether a real NATTEN that is installed, or imported, may be hidden.

    Raises:
        RuntimeError: if NATTEN itself is installed and force is not given.
        ValueError: if version is no release of NATTEN.
    """
    if version is not None:
        release.numbers(version)
    if not is_installed():
        real = _real_natten()
        if real is not None and not force:
            raise RuntimeError(f"natten: required not to be installed, or install(force=True), got {real}")
        _replaced.update(_under_natten())
        for name in _replaced:
            del sys.modules[name]
        package = sys.modules["natten"] = importlib.import_module(_OURS)
        for name in _SUBMODULES:
            sys.modules[f"natten.{name}"] = importlib.import_module(f"{_OURS}.{name}")
        for name, rank in _CLASSES.items():
            module = sys.modules[f"natten.{name}"] = _module_of_class(name, rank)
            package.__dict__.setdefault(name, module)  # natten.na2d is the function, as since 0.20
        sys.modules["natten.experimental"] = importlib.import_module(f"{_OURS}.functional")
        sys.meta_path.insert(0, _finder)
    release.assume_release(version)


def uninstall() -> None:
    """Undo :func:`install`: the name natten is what it was. What client code has imported stays as it is."""
    if not is_installed():
        return
    sys.meta_path.remove(_finder)
    for name in _under_natten():
        del sys.modules[name]
    sys.modules.update(_replaced)
    _replaced.clear()
    release.assume_release(None)
