"""A model's graph in terms of products and norms: what becomes part of a product, what stays, and that it is right."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn
from torch.export import Dim, export
from torch.nn import functional as F

from tests.helpers import Function, relative_error
from tvm_na.deploy.products import dense_problem
from tvm_na.deploy.relax.problems import problems_of_whole
from tvm_na.deploy.rewrite import dense, layered, norm
from tvm_na.models import NAT
from tvm_na.models.dinat_s import PatchMerging
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.dense import DenseProblem


def graph_of(model: nn.Module, *sizes: int) -> torch.fx.GraphModule:
    """The layered graph of a model for any batch, which computes what the model does."""
    torch.manual_seed(0)
    images = torch.randn(3, *sizes)
    with torch.no_grad():
        program = export(model.eval(), (images,), dynamic_shapes=({0: Dim("batch", min=1)},), strict=False)
        graph = layered(program.run_decompositions({}))
        for x in (images, images[:1]):
            assert relative_error(graph(x), model(x)) <= 1e-6
    return graph


def products(graph: torch.fx.GraphModule) -> list[tuple[str, bool, bool]]:
    """(activation, bias, residual) of each product."""
    nodes = [node for node in graph.graph.nodes if node.target is dense]
    return [(node.args[4], node.args[2] is not None, node.args[3] is not None) for node in nodes]


def others(graph: torch.fx.GraphModule) -> Counter[str]:
    """What else is computed, by name; shapes and views are nothing."""
    nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
    names = [getattr(node.target, "__name__", str(node.target)) for node in nodes if node.target is not dense]
    return Counter(name for name in names if name not in ("sym_size.int", "reshape.default", "getitem"))


def test_a_block_is_products_and_norms() -> None:
    def block(m, x):
        x = x + m.gamma * F.linear(F.layer_norm(x, (8,), m.scale, m.shift), m.w, m.b)
        return F.linear(F.gelu(F.linear(x, m.w, m.b)), m.w) + x

    parameters = {name: torch.randn(8) for name in ("gamma", "scale", "shift", "b")}
    graph = graph_of(Function(block, w=torch.randn(8, 8), **parameters), 5, 8)
    assert products(graph) == [("none", True, True), ("gelu", True, False), ("none", False, True)]
    assert others(graph) == {"norm": 1}


def test_convolutions_take_channels_last_maps() -> None:
    convs = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.GELU(), nn.Conv2d(6, 4, (2, 3), bias=False))
    graph = graph_of(convs, 3, 9, 10)
    assert products(graph) == [("gelu", True, False), ("none", False, False)]
    assert others(graph) == {"permute.default": 2}  # the input's and the output's
    problem = dense_problem(graph, next(n for n in graph.graph.nodes if n.target is dense))
    assert problem.spatial == (9, 10) and problem.stride == (2, 2) and problem.out_spatial == (5, 5)


@pytest.mark.parametrize(
    ("layer", "left"),
    [
        (nn.Conv2d(4, 4, 3, groups=2), "conv2d.default"),
        (nn.Conv2d(4, 4, 2, dilation=2), "conv2d.default"),
        (nn.Conv2d(4, 4, 1, padding=1), "conv2d.default"),
        (nn.LayerNorm((8, 8)), "layer_norm.default"),
        (nn.LayerNorm(8, elementwise_affine=False), "layer_norm.default"),
        (nn.GELU(approximate="tanh"), "gelu.default"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_there_is_no_kernel_for_stays(layer: nn.Module, left: str) -> None:
    assert others(graph_of(layer, 4, 8, 8))[left] == 1


def test_what_others_see_is_not_absorbed() -> None:
    def twice(m, x):
        y = F.linear(x, m.w)
        return F.gelu(y) + y

    graph = graph_of(Function(twice, w=torch.randn(8, 8)), 5, 8)
    assert products(graph) == [("none", False, False)] and others(graph)["gelu.default"] == 1


def test_sums_that_are_no_residuals_are_not_absorbed() -> None:
    def broadcast(m, x):
        return F.linear(x, m.w) + x[:, :1] + m.constant

    graph = graph_of(Function(broadcast, w=torch.randn(8, 8), constant=torch.randn(5, 8)), 5, 8)
    assert products(graph) == [("none", False, False)] and others(graph)["add.Tensor"] == 2


def test_two_products_are_summed_by_the_later_one() -> None:
    def both(m, x):
        return F.linear(x, m.w) + F.linear(x, m.v)

    graph = graph_of(Function(both, w=torch.randn(8, 8), v=torch.randn(8, 8)), 5, 8)
    assert sorted(products(graph)) == [("none", False, False), ("none", False, True)]


def test_copies_and_dropout_vanish_and_constants_fold() -> None:
    def function(m, x):
        first, second = (m.w * 2).chunk(2)
        return F.dropout(F.linear(x, first).transpose(1, 2).contiguous().view(-1, 20), training=False) + second.sum()

    graph = graph_of(Function(function, w=torch.randn(8, 8)), 5, 8)
    assert products(graph) == [("none", False, False)]
    assert set(others(graph)) == {"transpose.int", "add.Tensor"}


def test_a_view_of_what_was_permuted_is_a_copy() -> None:
    graph = graph_of(PatchMerging(4), 6, 8, 4)
    assert products(graph) == [("none", False, False)]
    assert others(graph) == {"permute.default": 1, "norm": 1}


def test_problems_of_a_whole_nat() -> None:
    model = NAT(embed_dim=16, depths=(1, 2), num_heads=(2, 4), mlp_ratio=2.0, kernel_size=3, num_classes=5)
    found = problems_of_whole(model, torch.zeros(1, 3, 32, 32))
    attention = {problem: count for problem, count in found.items() if isinstance(problem, NAProblem)}
    assert [(p.spatial, p.heads, count) for p, count in attention.items()] == [((8, 8), 2, 1), ((4, 4), 4, 2)]
    linear = {str(p): count for p, count in found.items() if not isinstance(p, NAProblem)}
    assert linear["64 channels 16->16 float32 bias"] == 3
    assert linear["16 channels 32->64 float32 bias gelu"] == 2
    assert linear["32x32 channels 3->8 k 3 stride 2 pad 1 float32 bias"] == 1
    assert linear["8x8 channels 16->32 k 3 stride 2 pad 1 float32"] == 1
    assert linear["1 channels 32->5 float32 bias"] == 1
    assert sum(linear.values()) == 2 + 1 + 6 * 3 + 1


def test_problems_with_int8_weights() -> None:
    model = NAT(embed_dim=16, depths=(1,), num_heads=(2,), mlp_ratio=2.0, kernel_size=3, num_classes=5)
    found = problems_of_whole(model, torch.zeros(1, 3, 32, 32), "int8")
    products = [problem for problem in found if isinstance(problem, DenseProblem)]
    assert len(products) == 7 and {problem.weight_dtype for problem in products} == {"int8"}


def test_norm_is_layer_norm() -> None:
    x, weight, bias = torch.randn(2, 3, 4), torch.randn(4), torch.randn(4)
    assert torch.equal(norm(x, weight, bias, 1e-3), F.layer_norm(x, (4,), weight, bias, 1e-3))
