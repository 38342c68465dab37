"""tvm_na: neighborhood attention, compiled by TVM for the hardware at hand and called from PyTorch.

Importing this package imports neither TVM nor anything else that is slow; names load on first use.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

# In a checkout models/ and schedules/ lie beside this folder; an installed package has them inside.
if not os.path.isdir(os.path.join(__path__[0], "models")):
    __path__.append(os.path.dirname(__path__[0]))

__version__ = "0.1.0"

_HOMES = {
    "NAProblem": "tvm_na.problems.attention",
    "Backend": "tvm_na.functional",
    "na1d": "tvm_na.functional",
    "na2d": "tvm_na.functional",
    "na3d": "tvm_na.functional",
    "merge_attentions": "tvm_na.functional",
    "na1d_qk": "tvm_na.unfused",
    "na2d_qk": "tvm_na.unfused",
    "na3d_qk": "tvm_na.unfused",
    "na1d_av": "tvm_na.unfused",
    "na2d_av": "tvm_na.unfused",
    "na3d_av": "tvm_na.unfused",
    "NeighborhoodAttention1D": "tvm_na.nn",
    "NeighborhoodAttention2D": "tvm_na.nn",
    "NeighborhoodAttention3D": "tvm_na.nn",
    "compile": "tvm_na.deploy.compiler",
    "load": "tvm_na.deploy.artifact",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
