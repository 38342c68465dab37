"""``natten.version``: the release of NATTEN whose interface is served."""

from __future__ import annotations

from tvm_na.compat.natten import release


def __getattr__(name: str) -> str:
    if name == "__version__":
        return release.version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
