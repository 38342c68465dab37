"""Searching schedules; ``tvm_na.tune.tune`` is the front door, which loads on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvm_na.tune.run import tune as tune

__all__ = ["tune"]


def __getattr__(name: str) -> Any:
    # Not at import: workers import parts of this package, and must not load what run.py needs.
    if name == "tune":
        from tvm_na.tune.run import tune

        return tune
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
