"""What a type checker tells a user: the package as it is installed, and a client that strict mypy must accept."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# The first line takes back what our own settings loosen. An unused "type: ignore" is an error.
CLIENT = """
# mypy: disallow-untyped-calls, disallow-any-generics, warn-return-any, disallow-subclassing-any
from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import assert_type

import tvm_na
from tvm_na import NeighborhoodAttention2D, merge_attentions, na1d, na2d, na2d_av, na2d_qk, na3d


def fused(x: Tensor, rpb: Tensor, lse: bool) -> None:
    assert_type(na1d(x, x, x, 7), Tensor)
    assert_type(na2d(x, x, x, (7, 5), 1, [2, 1], is_causal=(True, False), scale=0.5, rpb=rpb), Tensor)
    assert_type(na3d(x, x, x, 3, return_lse=False, backend="compiled"), Tensor)
    assert_type(na2d(x, x, x, 7, return_lse=True), tuple[Tensor, Tensor])
    assert_type(na2d(x, x, x, 7, return_lse=lse), Tensor | tuple[Tensor, Tensor])
    out, total = na2d(x, x, x, 7, additional_keys=x, additional_values=x, return_lse=True)
    assert_type(merge_attentions([out, out], [total, total]), tuple[Tensor, Tensor])
    na2d(x, x, x)  # type: ignore
    na2d(x, x, x, "7")  # type: ignore
    na2d(x, x, x, 7, kernel=7)  # type: ignore


def in_steps(x: Tensor) -> Tensor:
    scores = na2d_qk(x, x, 7, dilation=2, backend="reference")
    assert_type(scores, Tensor)
    na2d_qk(x, x)  # type: ignore
    return na2d_av(scores.softmax(-1), x, 7, dilation=2)


def layers_and_artifacts(x: Tensor) -> Tensor:
    layer = NeighborhoodAttention2D(64, 2, 7, rel_pos_bias=True)
    assert_type(layer, NeighborhoodAttention2D)
    NeighborhoodAttention2D("64", 2, 7)  # type: ignore
    tvm_na.compile(layer, x, output="layer.artifact")
    tvm_na.compile(layer, x)  # type: ignore
    tvm_na.load("layer.artifact")
    return torch.zeros(1)
"""


@pytest.mark.slow
def test_a_client_passes_strict_mypy(tmp_path: Path) -> None:
    """With the cache of ``make typecheck``, which knows PyTorch by then."""
    for source, place in (("tvm_na", "tvm_na"), ("models", "tvm_na/models"), ("schedules", "tvm_na/schedules")):
        shutil.copytree(ROOT / source, tmp_path / place, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "client.py").write_text(CLIENT.lstrip(), encoding="utf-8")
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / "build" / "mypy-cache")]
    command = [sys.executable, "-m", "mypy", *options, "client.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_public_name_is_there() -> None:
    import tvm_na

    assert all(getattr(tvm_na, name) is not None for name in tvm_na.__all__)
