"""tvm_na: neighborhood attention, compiled by TVM for the hardware at hand and called from PyTorch.

Importing this package imports neither TVM nor anything else that is slow; names load on first use.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what type checkers and editors see; __getattr__ is what runs
    from tvm_na.deploy.artifact import load as load
    from tvm_na.deploy.compiler import compile as compile
    from tvm_na.functional import Backend as Backend
    from tvm_na.functional import merge_attentions as merge_attentions
    from tvm_na.functional import na1d as na1d
    from tvm_na.functional import na2d as na2d
    from tvm_na.functional import na3d as na3d
    from tvm_na.nn import NeighborhoodAttention1D as NeighborhoodAttention1D
    from tvm_na.nn import NeighborhoodAttention2D as NeighborhoodAttention2D
    from tvm_na.nn import NeighborhoodAttention3D as NeighborhoodAttention3D
    from tvm_na.problems.attention import NAProblem as NAProblem
    from tvm_na.unfused import na1d_av as na1d_av
    from tvm_na.unfused import na1d_qk as na1d_qk
    from tvm_na.unfused import na2d_av as na2d_av
    from tvm_na.unfused import na2d_qk as na2d_qk
    from tvm_na.unfused import na3d_av as na3d_av
    from tvm_na.unfused import na3d_qk as na3d_qk

# In a checkout models/ and schedules/ lie beside this folder; an installed package has them inside.
if not os.path.isdir(os.path.join(__path__[0], "models")):
    __path__.append(os.path.dirname(__path__[0]))

__version__ = "0.1.0"

_PUBLIC = {
    "tvm_na.problems.attention": ("NAProblem",),
    "tvm_na.functional": ("Backend", "na1d", "na2d", "na3d", "merge_attentions"),
    "tvm_na.unfused": ("na1d_qk", "na2d_qk", "na3d_qk", "na1d_av", "na2d_av", "na3d_av"),
    "tvm_na.nn": ("NeighborhoodAttention1D", "NeighborhoodAttention2D", "NeighborhoodAttention3D"),
    "tvm_na.deploy.compiler": ("compile",),
    "tvm_na.deploy.artifact": ("load",),
}
_HOMES = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
