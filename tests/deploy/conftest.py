"""Artifacts that several files test."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.deploy.artifacts import CLASSES, Made, by_command, once, small_model, tvm_artifact
from tvm_na.deploy.aoti import linear
from tvm_na.deploy.request import Request
from tvm_na.models import NAModel
from tvm_na.problems.dense import DenseProblem


@pytest.fixture(scope="session")
def aoti(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """An artifact of the format ``aoti`` for this machine; to measure linear layers would take as long as the rest.

    Those with an activation or a residual, or with channels that fill no vector, have kernels of ours.
    """

    def decide(problems: Iterable[DenseProblem], request: Request) -> dict[DenseProblem, linear.Decision]:
        more = {p: p.activation != "none" or p.residual or p.out_channels == CLASSES for p in problems}
        return {p: linear.Decision(ours, "as the test wants it") for p, ours in more.items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "decide", decide)
        return once(tmp_path_factory, "aoti", by_command("--no-autotune"))


@pytest.fixture(scope="session")
def tvm(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """An artifact of the format ``tvm`` for this machine."""
    return tvm_artifact(tmp_path_factory)


@pytest.fixture(params=["aoti", "tvm"])
def either(request: pytest.FixtureRequest) -> Made:
    """An artifact of each format."""
    made: Made = request.getfixturevalue(request.param)
    return made


@pytest.fixture(scope="session")
def model() -> NAModel:
    """What the artifacts were made of, on the reference backend."""
    return small_model()


@pytest.fixture
def aoti_copy(aoti: Made, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(aoti.path, tmp_path / "copy.artifact"))


@pytest.fixture
def tvm_copy(tvm: Made, tmp_path: Path) -> Path:
    """A copy, to be changed."""
    return Path(shutil.copytree(tvm.path, tmp_path / "copy.artifact"))
