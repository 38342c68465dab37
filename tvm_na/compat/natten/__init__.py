"""NATTEN's programming interface, 0.14 to 0.21, served by tvm_na: change one import, or call :func:`install`.

``from tvm_na.compat import natten`` gives what ``import natten`` gave. docs/guide/natten.md says what is accepted,
ignored, different and missing.
"""

from __future__ import annotations

from typing import Any

from tvm_na.compat.natten import backends, context, functional, release, types, utils, version
from tvm_na.compat.natten.functional import attention, merge_attentions, na1d, na2d, na3d
from tvm_na.compat.natten.install import install, is_installed, uninstall
from tvm_na.compat.natten.modules import (
    NeighborhoodAttention,
    NeighborhoodAttention1D,
    NeighborhoodAttention2D,
    NeighborhoodAttention3D,
)
from tvm_na.compat.natten.release import assume_release

#: Where 0.17 had operators that torch.compile takes; here it takes all of them.
experimental = functional

#: Whether NATTEN's compiled library is there. It is not; everything works without it.
HAS_LIBNATTEN = False

globals().update({name: getattr(context, name) for name in context.NAMES})

__all__ = [
    "HAS_LIBNATTEN",
    "NeighborhoodAttention",
    "NeighborhoodAttention1D",
    "NeighborhoodAttention2D",
    "NeighborhoodAttention3D",
    "__version__",
    "assume_release",
    "attention",
    "backends",
    "context",
    "experimental",
    "functional",
    "install",
    "is_installed",
    "merge_attentions",
    "na1d",
    "na2d",
    "na3d",
    "release",
    "types",
    "uninstall",
    "utils",
    "version",
    *context.NAMES,
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return release.version()
    if name in backends.NAMES:
        return getattr(backends, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
