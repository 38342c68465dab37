"""Artifacts with int8 weights of linear layers and convolutions, in both formats; which those are, what it costs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tvm_na
from tests.cli.invoking import invoke
from tests.deploy.artifacts import LIMIT, SIZE, Made, by_command, once, seal, small_model
from tests.deploy.test_layers import graph_of
from tests.helpers import PROBLEMS, Function, relative_error
from tvm_na.deploy import int8, manifest
from tvm_na.deploy.products import dense_problem, scale_of
from tvm_na.deploy.rewrite import dense, dequantized
from tvm_na.deploy.weights import map_weights
from tvm_na.models import NAModel

OPTIONS = {"aoti": ("--no-autotune",), "tvm": ("--format", "tvm")}


# A C++ compiler takes half a minute for the other one.
@pytest.fixture(scope="module", params=OPTIONS if PROBLEMS >= 100 else ("tvm",))
def narrow(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """An artifact with int8 weights, of each format."""
    options = (*OPTIONS[request.param], "--records", "off", "--weights-dtype", "int8")
    return once(tmp_path_factory, f"{request.param}-int8", by_command(*options))


@pytest.fixture(scope="module")
def rounded() -> NAModel:
    twin = int8.rounded(small_model())
    assert isinstance(twin, NAModel)
    return twin


def test_numbers_are_those_of_the_rounded_model(narrow, rounded, model) -> None:
    images = torch.randn(3, 3, SIZE, SIZE)
    out = tvm_na.load(narrow.path)(images)
    with torch.no_grad():
        assert relative_error(out, rounded(images)) <= LIMIT
        assert LIMIT < relative_error(out, model(images)) <= int8.BUDGETS["int8"]


def test_it_says_what_the_rounding_changed(narrow) -> None:
    found = manifest.read_manifest(narrow.path)
    assert found.weights_dtype == "int8" and found.check["relative_error"] <= LIMIT
    assert found.rounding is not None
    assert 1e-4 < found.rounding["relative_error"] < found.rounding["budget"] == int8.BUDGETS["int8"]
    assert found.rounding["inputs"] == 6 >= found.rounding["same_class"]
    for said in (narrow.said[0], invoke("check", narrow.path).stdout):
        line = next(line for line in said.splitlines() if line.startswith("int8 weights"))
        assert "to float32, budget 5e-02; the same class for " in line and "of 6 random inputs" in line


def test_each_weight_is_one_byte(narrow, rounded) -> None:
    """Of linear layers and convolutions; and there is no other copy of them."""
    weights = [m.weight.detach() for m in rounded.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    content = b"".join(file.read_bytes() for file in narrow.path.rglob("*") if file.is_file())
    for weight in weights:
        for order in (weight, weight.movedim(1, -1)):
            assert order[0].flatten()[:8].contiguous().numpy().tobytes() not in content
    if manifest.read_manifest(narrow.path).kind == "tvm":
        mapped = map_weights(narrow.path / manifest.WEIGHTS).values()
        count = sum(weight.numel() for weight in weights)
        assert count <= sum(array.nbytes for array in mapped if array.dtype == np.int8) <= 1.2 * count
        assert all(array.ndim == 1 or array.dtype == np.int8 or array.size < 500 for array in mapped)


def test_commands_take_it(narrow, tmp_path: Path) -> None:
    Image.new("RGB", (40, 40), "orange").save(tmp_path / "photo.png")
    assert "photo.png" in invoke("run", narrow.path, tmp_path / "photo.png", "--top", 1).stdout
    assert "ms" in invoke("bench", "artifact", narrow.path, "--rounds", 2).stdout


def test_manifests_of_before_and_wrong_ones(narrow, tmp_path: Path) -> None:
    path = Path(shutil.copytree(narrow.path, tmp_path / "copy.artifact"))
    found = manifest.read_manifest(path)
    model = {name: value for name, value in found.model.items() if name != "weights_dtype"}
    check = {name: value for name, value in found.check.items() if name != "rounding"}
    seal(path, model=model, check=check)
    old = manifest.read_manifest(path)
    assert (old.weights_dtype, old.rounding) == ("float32", None)
    seal(path, check={**check, "rounding": {"relative_error": "none"}})
    with pytest.raises(ValueError, match=r"got .* as check\.rounding"):
        manifest.read_manifest(path)


def test_quantized_weights_are_the_nearest_and_stay() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 3, 2, 2) * torch.tensor([1, 1e-30, 0, 1e30, -2.0]).view(-1, 1, 1, 1)
    steps, scale = int8.quantized(weight)
    assert steps.dtype == torch.int8 and steps.abs().flatten(1).amax(1).tolist() == [127, 127, 0, 127, 127]
    back = dequantized(steps, scale)
    assert ((back - weight).abs() <= 0.501 * scale.view(-1, 1, 1, 1)).all()
    assert torch.equal(int8.quantized(back)[0], steps)


class Layers(nn.Module):
    """What is rounded, and what is not: a norm, groups, a weight that is no layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.groups = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 24)
        self.scale, self.free = nn.Parameter(torch.rand(24) - 0.5), nn.Parameter(torch.randn(6, 24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.groups(self.conv(x)).permute(0, 2, 3, 1))
        return nn.functional.linear(self.scale * self.linear(x), self.free)


def test_what_is_rounded_and_narrowed() -> None:
    torch.manual_seed(0)
    model = Layers()
    twin = int8.rounded(model)
    assert isinstance(twin, Layers)
    same = {name for name, p in twin.named_parameters() if p is dict(model.named_parameters())[name]}
    assert {name for name, _ in twin.named_parameters()} - same == {"conv.weight", "linear.weight"}
    graph, x = graph_of(twin, 4, 6, 7), torch.randn(2, 4, 6, 7)
    before = graph(x)
    int8.narrow(graph)
    nodes = [node for node in graph.graph.nodes if node.target is dense]
    assert [dense_problem(graph, node).weight_dtype for node in nodes] == ["int8", "int8", None]
    assert [scale_of(node) is not None for node in nodes] == [True, True, False]
    with torch.no_grad():
        assert relative_error(graph(x), before) <= 1e-6
    assert sum(p.numel() for p in graph.parameters() if p.dtype == torch.int8) == 8 * 4 * 9 + 24 * 8


def test_what_rounding_changes_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(int8.BUDGETS, "int8", 1e-6)
    with pytest.raises(RuntimeError, match=r"weights_dtype: required outputs within 1e-06 .* with int8"):
        compile_(tmp_path, small_model(levels=1), weights_dtype="int8")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weights_dtype": "int4"}, "weights_dtype: required None or int8 with the format tvm, got 'int4'"),
        (
            {"weights_dtype": "int8", "precision": "float64"},
            "weights_dtype: required None with the precision float64, got int8",
        ),
    ],
)
def test_what_cannot_be_narrowed(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        compile_(tmp_path, small_model(levels=1), **options)


def compile_(folder: Path, model: nn.Module, **options: Any) -> None:
    tvm_na.compile(model, torch.zeros(1, 3, SIZE, SIZE), output=folder / "x.artifact", format="tvm", **options)


def test_classes_are_counted_where_there_are_some() -> None:
    model, example = small_model(levels=1), torch.zeros(1, 3, SIZE, SIZE)
    twin = int8.rounded(model)
    assert int8.rounding_of(model, twin, example, 4).same_class in range(5)
    maps = [Function(lambda m, x: m.inner(x)[:, :, None], inner=one) for one in (model, twin)]
    assert int8.rounding_of(*maps, example, 4).same_class is None
