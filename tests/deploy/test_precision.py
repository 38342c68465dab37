"""Artifacts in half precision, in both formats: bfloat16 between layers, or float16 weights alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tvm_na
from tests.cli.invoking import invoke
from tests.deploy.artifacts import SIZE, Made, by_command, once, seal, small_model
from tests.deploy.test_layers import graph_of, others
from tests.helpers import PROBLEMS, Function, relative_error
from tvm_na.deploy import manifest, precision
from tvm_na.deploy.aoti import linear
from tvm_na.deploy.check import reference_of
from tvm_na.deploy.products import dense_problem
from tvm_na.deploy.rewrite import dense
from tvm_na.deploy.weights import map_weights, write_weights
from tvm_na.problems.dense import DenseProblem
from tvm_na.serve.classifier import artifact_classifier

OPTIONS = {"aoti": ("--no-autotune",), "tvm": ("--format", "tvm")}
KINDS = [("aoti", "bfloat16"), ("tvm", "bfloat16"), ("tvm", "float16")]
if PROBLEMS >= 100:  # a C++ compiler's half a minute
    KINDS.append(("aoti", "float16"))


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def halves(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Made, str]:
    """An artifact of each format in each half precision, and that."""
    kind, name = request.param
    options = (*OPTIONS[kind], "--records", "off", "--precision", name)
    return once(tmp_path_factory, f"{kind}-{name}", by_command(*options)), name


def exact(images: Tensor) -> Tensor:
    """What the model gives in float64."""
    with torch.no_grad():
        found: Tensor = small_model().double()(images.double())
    return found


def test_numbers_are_those_of_the_model_in_float64(halves) -> None:
    """For any batch, of float32; of rounded numbers, and so not those of a float32 artifact."""
    made, name = halves
    artifact = tvm_na.load(made.path)
    for batch in (1, 5):
        images = torch.randn(batch, 3, SIZE, SIZE)
        out = artifact(images)
        assert out.dtype == torch.float32
        assert 2e-5 < relative_error(out, exact(images)) <= precision.BUDGETS[name]
    with pytest.raises(TypeError, match="images: required dtype float32, got bfloat16"):
        artifact(images.bfloat16())


def test_it_says_what_it_is(halves) -> None:
    made, name = halves
    found = manifest.read_manifest(made.path)
    assert found.precision == name and found.input.dtype == found.outputs[0].dtype == "float32"
    assert found.check["relative_error"] <= found.check["budget"] == precision.BUDGETS[name]
    kinds = {(p["problem"]["dtype"], p["problem"].get("weight_dtype")) for p in found.problems}
    attention = {("float32", None)} if name == "float16" else set()
    assert kinds == {("float32", "float16")} | attention if name == "float16" else {("bfloat16", None)}
    assert re.search(rf"precision +{name}", made.said[0])
    said = invoke("check", made.path).stdout
    assert re.search(
        rf"precision +{name}, relative error when it was made .*, budget {found.check['budget']:.0e}", said
    )


def test_weights_are_half_as_large(halves) -> None:
    """Those of linear layers and convolutions are there once, in two bytes."""
    made, _ = halves
    weights = [m.weight.detach() for m in small_model().modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    content = b"".join(file.read_bytes() for file in made.path.rglob("*") if file.is_file())
    for weight in weights:
        for order in (weight, weight.movedim(1, -1)):
            assert order[0].flatten()[:8].contiguous().numpy().tobytes() not in content
    if manifest.read_manifest(made.path).kind == "tvm":
        arrays = map_weights(made.path / manifest.WEIGHTS).values()
        packed = sum(array.nbytes for array in arrays if array.ndim > 2)
        assert packed <= 2.4 * sum(weight.numel() for weight in weights)
        assert sum(array.nbytes for array in arrays) <= 1.1 * packed


def test_commands_take_it(halves, photo) -> None:
    made, _ = halves
    assert "call, median" in invoke("bench", "artifact", made.path, "--rounds", 2).stdout
    assert photo.name in invoke("run", made.path, photo).stdout


def test_an_eager_copy_may_differ_by_the_budget(halves) -> None:
    made, _ = halves
    assert artifact_classifier(made.path, None, lambda name, classes: small_model()).attention is not None
    with pytest.raises(ValueError, match="required the model that the artifact was made of"):
        artifact_classifier(made.path, None, lambda name, classes: small_model(seed=2))


def test_manifests_of_before_are_of_their_inputs_precision(aoti_copy: Path) -> None:
    path = aoti_copy / manifest.MANIFEST
    content = manifest._parsed(path)
    del content["precision"], content["digest"]
    path.write_text(manifest.json.dumps({**content, "digest": manifest._digest_of(content)}))
    assert manifest.read_manifest(aoti_copy).precision == "float32"
    seal(aoti_copy, precision=16)
    with pytest.raises(ValueError, match="got 16 as precision"):
        manifest.read_manifest(aoti_copy)


def test_a_model_in_halves_is_taken_with_a_precision(tmp_path: Path) -> None:
    model, example = small_model(levels=1).bfloat16(), torch.zeros(1, 3, SIZE, SIZE, dtype=torch.bfloat16)
    arguments: dict[str, Any] = {"output": tmp_path / "x.artifact", "format": "tvm", "records": "off"}
    with pytest.raises(ValueError, match="precision: required one for a model in bfloat16, got None"):
        tvm_na.compile(model, example, **arguments)
    assert not list(tmp_path.iterdir())
    with pytest.warns(UserWarning, match="UNTUNED"):
        artifact = tvm_na.compile(model, example, precision="bfloat16", **arguments)
    images = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        assert relative_error(artifact(images), model.double()(images.double())) <= precision.BUDGETS["bfloat16"]
    assert artifact.manifest.model["name"] == "NAT" and model.head.weight.dtype == torch.float64


def test_what_is_right_is_of_the_model_as_it_was() -> None:
    """In float64; the model that is compiled is another one, and neither is the caller's."""
    model = small_model(levels=1)
    wanted, reference, example = precision.in_precision(model, torch.zeros(1, 3, SIZE, SIZE), "bfloat16")
    right = reference_of(reference, example, None)
    for images, (out,) in zip(right.inputs, right.outputs, strict=True):
        assert images.dtype == out.dtype == torch.float32
        with torch.no_grad():
            assert relative_error(out, small_model(levels=1).double()(images.double())) <= 1e-6
            assert 1e-4 < relative_error(wanted(images), out) <= precision.BUDGETS["bfloat16"]
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_float16_weights_of_products_alone() -> None:
    def model(m, x):
        return m.norm(m.conv(x).permute(0, 2, 3, 1)) @ m.free

    parts = {"conv": nn.Conv2d(4, 8, 3, padding=1), "norm": nn.LayerNorm(8), "free": torch.randn(8, 6)}
    graph, x = graph_of(Function(model, **parts), 4, 6, 7), torch.randn(2, 4, 6, 7)
    before = graph(x)
    precision.round_weights(graph)
    with torch.no_grad():
        assert 1e-5 < relative_error(graph(x), before) <= 1e-3
    kinds = [dense_problem(graph, n).weight_dtype for n in graph.graph.nodes if n.target is dense]
    assert set(kinds) == {"float16"}
    narrow = {name for name, p in graph.named_parameters() if p.dtype == torch.float16}
    assert len(narrow) == len(kinds) and not any("norm" in name for name in narrow)


def test_weights_beyond_float16_are_refused() -> None:
    graph = graph_of(Function(lambda m, x: nn.functional.linear(x, m.w), w=torch.full((3, 8), 7e4)), 5, 8)
    with pytest.raises(ValueError, match="precision: required weights of at most 65504 with float16, got 7e"):
        precision.round_weights(graph)


def test_means_of_halves_are_summed_in_float32() -> None:
    graph = graph_of(Function(lambda m, x: x.mean((1, 2)) + x.sum(1)[:, 0]), 5, 8, 4)
    for node in graph.graph.nodes:
        if isinstance(node.meta.get("val"), Tensor):
            node.meta["val"] = node.meta["val"].bfloat16()
    precision.widen_sums(graph)
    assert others(graph)["_to_copy.default"] == 4
    x = torch.randn(2, 5, 8, 4, dtype=torch.bfloat16)
    with torch.no_grad():
        out = graph(x)
    assert out.dtype == torch.bfloat16
    assert relative_error(out, x.double().mean((1, 2)) + x.double().sum(1)[:, 0]) <= 1e-2


def test_whose_kernels_where_nothing_is_measured() -> None:
    from tests.deploy.test_linear import request_for

    convolution = DenseProblem.make((8, 8), 3, 4, kernel_size=3, dtype="bfloat16")
    layer = DenseProblem.make(64, 8, 8, dtype="bfloat16")
    for request in (request_for(False), request_for(True)):
        assert linear.decide([convolution], request)[convolution].ours
    assert linear.decide([layer], request_for(False))[layer].ours


def test_halves_in_files_of_weights(tmp_path: Path) -> None:
    bits = np.arange(70, dtype=np.uint16)
    write_weights(tmp_path / "w", {"half": np.ones(64, np.float16), "bfloat16": bits})
    found = map_weights(tmp_path / "w")
    assert found["half"].dtype == np.float16 and np.array_equal(found["bfloat16"], bits)
    from safetensors.torch import load_file

    assert torch.equal(load_file(tmp_path / "w")["bfloat16"], torch.from_numpy(bits).view(torch.bfloat16))
