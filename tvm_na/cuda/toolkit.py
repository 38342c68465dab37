"""Where CUDA's toolkit is, and its programs."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

DEFAULT_HOME = "/usr/local/cuda"


def homes() -> list[Path]:
    """Where CUDA's toolkit may be: CUDA_HOME, CUDA_PATH, the usual folder, where nvidia's packages are installed."""
    named = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    spec = importlib.util.find_spec("nvidia")
    packages = list(spec.submodule_search_locations or ()) if spec is not None else []
    # cu13 has the files of all packages for CUDA 13, the others are one folder each.
    return [Path(p) for p in (*named, DEFAULT_HOME, *(f"{folder}/cu13" for folder in packages))]


def tool(name: str) -> str | None:
    """The path of one of the toolkit's programs; None if it is not here."""
    for home in homes():
        if (found := shutil.which(name, path=str(home / "bin"))) is not None:
            return found
    return shutil.which(name)
