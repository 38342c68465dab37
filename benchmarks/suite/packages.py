"""Models compiled ahead: packages of AOTInductor, and our artifacts; each is made once for its versions."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import tvm_na
from benchmarks.suite.cases import Setting
from benchmarks.suite.networks import CONVNEXT, SWIN, Network, network
from benchmarks.suite.turns import rounded
from tvm_na import settings
from tvm_na.measure.timing import version_of
from tvm_na.targets.target import cpu_name

PACKAGE, ARTIFACTS = "AOTInductor", ("aoti", "tvm")
#: What Inductor is told of a package, as ``tvm_na.deploy`` tells it.
_OPTIONS: dict[str, dict[str, Any]] = {
    "cpu": {"max_autotune": True, "max_autotune_gemm_backends": "CPP,ATEN", "freezing": True},
    "cuda": {"max_autotune": True, "freezing": True},
}
_ABOUT = "made.json"


def images(found: Network, batch: int, setting: Setting) -> Tensor:
    """Noise ``[batch, 3, size, size]``, in the setting's dtype."""
    torch.manual_seed(1)
    return torch.randn(batch, 3, found.size, found.size).to(setting.device, setting.torch_dtype)


def placed(found: Network, setting: Setting) -> nn.Module:
    """The model on its device, in the dtype of images."""
    return found.model.to(setting.device, setting.torch_dtype)


def _path(way: str, name: str, setting: Setting) -> Path:
    return setting.folder / "packages" / f"{way} {name}".replace(" ", "-").lower()


def made(way: str, name: str, setting: Setting) -> dict[str, Any]:
    """Make a package or an artifact: the seconds that took, and its bytes.

    One of another library's model is taken as it is, if it was made of the same versions on such a machine.
    """
    if way in ARTIFACTS and setting.device != "cpu":
        return {"refused": "artifacts of whole models are for CPUs"}
    found, path = network(name, setting.quick), _path(way, name, setting)
    versions = _versions(found, setting)
    if name in (SWIN, CONVNEXT) and (path / _ABOUT).is_file():
        about = json.loads((path / _ABOUT).read_text(encoding="utf-8"))
        if about["versions"] == versions:
            return {"seconds": about["seconds"], "bytes": about["bytes"]}
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    _make(way, placed(found, setting), images(found, 1, setting), path, setting.device)
    result = {"seconds": rounded(time.perf_counter() - start)}
    result["bytes"] = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if way == PACKAGE:  # an artifact's files are verified: none may be added
        (path / _ABOUT).write_text(json.dumps({"versions": versions, **result}), encoding="utf-8")
    return result


def _versions(found: Network, setting: Setting) -> dict[str, Any]:
    names = ("torch", "timm", "transformers")
    machine = {"cpu": cpu_name(), "cores": settings.available_cores(), "device": setting.device}
    return {"source": found.source, "options": _OPTIONS[setting.device], **machine, **{n: version_of(n) for n in names}}


def _make(way: str, model: nn.Module, x: Tensor, path: Path, device: str) -> None:
    if way in ARTIFACTS:
        tvm_na.compile(model, x, batch=1, output=path, format=way)  # type: ignore[arg-type]
        return
    path.mkdir()
    program = torch.export.export(model, (x,))
    file = str(path / "model.pt2")
    torch._inductor.aoti_compile_and_package(program, package_path=file, inductor_configs=_OPTIONS[device])


def loaded(way: str, name: str, setting: Setting) -> Callable[[Tensor], Tensor]:
    """What :func:`made` made; FileNotFoundError if it did not."""
    path = _path(way, name, setting)
    if not path.is_dir():
        raise FileNotFoundError("it was not made")
    if way in ARTIFACTS:
        return tvm_na.load(path)
    package: Callable[[Tensor], Tensor] = torch._inductor.aoti_load_package(str(path / "model.pt2"))
    return package
