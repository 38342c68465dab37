"""Searching schedules; ``tvm_na.tune.tune`` is the front door, which loads on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvm_na.tune.options import TuneOptions as TuneOptions
    from tvm_na.tune.run import tune as tune

__all__ = ["TuneOptions", "tune"]


def __getattr__(name: str) -> Any:
    # Not at import: workers import parts of this package, and must not load what run.py needs.
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("tvm_na.tune.run"), name)
