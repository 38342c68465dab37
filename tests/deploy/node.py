"""Running JavaScript in node."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

#: The version that WebAssembly with vectors and threads wants.
_OLDEST = 18


def require(test: str) -> None:
    """Skip ``test`` where there is no node, or an old one."""
    if shutil.which("node") is None:
        pytest.skip(f"{test} needs node")
    said = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout
    if int(said.lstrip("v").split(".")[0]) < _OLDEST:
        pytest.skip(f"{test} needs node {_OLDEST} or newer, got {said.strip()}")


def node(folder: Path, code: str, *given: Any) -> Any:
    """What an asynchronous function body returns, as JSON; ``na`` are the names of the artifact's module in ``folder``.

    ``given`` are its further arguments as JSON; typed arrays become lists.
    """
    script = f"""
        import * as na from {json.dumps((folder / "tvm_na.mjs").as_uri())};
        const folder = {json.dumps(str(folder))}, given = {json.dumps(given)};
        const base = {json.dumps(folder.as_uri() + "/")};
        const found = await (async () => {{ {code} }})();
        const plain = (name, value) => (ArrayBuffer.isView(value) ? Array.from(value) : value);
        console.log(JSON.stringify(found ?? null, plain));
    """
    done = subprocess.run(
        ["node", "--input-type=module", "-"], input=script, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def numbers(found: dict[str, Any]) -> np.ndarray[Any, Any]:
    """An output of a model in node as an array."""
    return np.array(found["data"], np.float64).reshape(found["shape"])
