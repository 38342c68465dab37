"""Blocks whose weights a compiler freezes: which are taken, and that they compute the same."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import GRADIENT_TOLERANCE, TOLERANCE
from tests.helpers import relative_error
from tvm_na.measure.linear import LIBRARY, OURS
from tvm_na.measure.timing import Timing
from tvm_na.models import frozen
from tvm_na.models.layers import Mlp, NABlock
from tvm_na.nn import NeighborhoodAttention2D
from tvm_na.problems.dense import DTYPES

inductor = pytest.importorskip("torch._inductor.config")
#: A block adds more numbers than an operator, and in halves is rounded after each of its products.
BUDGET = GRADIENT_TOLERANCE | {name: 2 * TOLERANCE[name] for name in ("bfloat16", "float16")}
OPERATORS = ["residual_attention", "residual_mlp"]


def block(dim: int = 24, heads: int = 2, kernel_size: int = 3, **options: Any) -> NABlock:
    torch.manual_seed(0)
    made = NABlock(dim, heads, kernel_size, layer_scale=0.5, mlp_ratio=2.0, **options).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def operators_in(module: nn.Module, x: Tensor, **options: Any) -> tuple[list[str], Tensor]:
    """Operators for halves of blocks in the traces of a module, and what it gives through them."""
    found: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        names = [str(node.target).removeprefix("tvm_na.").partition(".")[0] for node in graph.graph.nodes]
        found.extend(name for name in names if name in OPERATORS)
        return graph.forward

    torch._dynamo.reset()
    return found, torch.compile(module, backend=backend, **options)(x)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels of ours always win."""
    of_ours = {OURS: Timing((1.0,)), LIBRARY: Timing((2.0,))}
    monkeypatch.setattr("tvm_na.measure.linear.compare_linear", lambda problem: of_ours)
    frozen._choose.cache_clear()


@contextlib.contextmanager
def freezing(on: bool = True) -> Iterator[None]:
    with inductor.patch(freezing=on):
        yield


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in DTYPES),
        ("float32", {"backend": "compiled"}),
        ("float32", {"dilation": 2, "dim": 20, "heads": 1}),
        ("float64", {"dilation": 2, "dim": 20, "heads": 1}),
    ],
)
def test_a_frozen_block_computes_the_same(name: str, options: dict[str, Any]) -> None:
    dtype = getattr(torch, name)
    module, x = block(**options).to(dtype), torch.randn(3, 7, 9, options.get("dim", 24)).to(dtype)
    with torch.no_grad(), freezing():
        wanted = copy.deepcopy(module).double()(x.double())
        names, found = operators_in(module, x, fullgraph=True)
    assert names == OPERATORS
    assert found.dtype == dtype
    assert relative_error(found, wanted) <= BUDGET[name]


@pytest.mark.usefixtures("always")
def test_without_layer_scale_or_batch_size() -> None:
    module = NABlock(16, 2, 3).eval()
    x = torch.randn(2, 5, 6, 16)
    torch._dynamo.mark_dynamic(x, 0)
    with torch.no_grad(), freezing():
        names, found = operators_in(module, x)
        assert names == OPERATORS
        assert relative_error(found, module.double()(x.double())) <= GRADIENT_TOLERANCE["float32"]


class Halved(NeighborhoodAttention2D):
    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return 0.5 * super()._attend(query, key, value)


def _with(change: Callable[[NABlock], object], **options: Any) -> NABlock:
    module = block(**options)
    change(module)
    return module


class Gated(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * super().forward(x)


def _watch(module: nn.Module) -> None:
    module.register_forward_hook(lambda *_: None)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    "module",
    [
        pytest.param(_with(lambda b: b.train()), id="training"),
        pytest.param(_with(lambda b: b.mlp.drop.train()), id="dropout"),
        pytest.param(_with(lambda b: _watch(b.attn)), id="a hook"),
        pytest.param(_with(lambda b: _watch(b.mlp.fc1)), id="a hook inside"),
        pytest.param(block(attention=Halved), id="another attention"),
        pytest.param(_with(lambda b: setattr(b, "mlp", Gated(24, 48).eval())), id="another MLP"),
        pytest.param(_with(lambda b: setattr(b, "norm2", nn.LayerNorm(24, bias=False).eval())), id="another norm"),
        pytest.param(block(backend="reference"), id="the reference"),
        pytest.param(block(kernel_size=9), id="a small map"),
        pytest.param(_with(lambda b: setattr(b.mlp, "act", nn.GELU("tanh"))), id="another activation"),
        pytest.param(_with(lambda b: setattr(b.mlp, "fc2", nn.Linear(48, 24, bias=False)))),
    ],
)
def test_what_changes_or_watches_a_block_leaves_it_as_it_is(module: NABlock) -> None:
    with torch.no_grad(), freezing():
        if module.mlp.fc2.bias is None:
            module.register_parameter("gamma2", None)
        assert operators_in(module, torch.randn(1, 7, 7, 24))[0] == []


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("what", ["not frozen", "gradients", "autocast", "a size that changes", "export"])
def test_where_a_trace_is_of_something_else(what: str) -> None:
    module, x = block(), torch.randn(1, 7, 7, 24)
    with contextlib.ExitStack() as stack:
        stack.enter_context(freezing(what != "not frozen"))
        if what != "gradients":
            stack.enter_context(torch.no_grad())
        if what == "autocast":
            stack.enter_context(torch.autocast("cpu", torch.bfloat16))
        if what == "a size that changes":
            torch._dynamo.maybe_mark_dynamic(x, 1)
        if what == "export":
            assert "residual_" not in str(torch.export.export(module, (x,), strict=True).graph)
            return
        assert operators_in(module, x)[0] == []


def test_eager_blocks_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "_blocks", lambda *_: pytest.fail("asked"))
    with torch.no_grad(), freezing():
        block()(torch.randn(1, 7, 7, 24))


@pytest.mark.parametrize(("ours", "taken"), [(1.0, True), (1.2, False)])
def test_the_library_is_left_where_ours_wins(monkeypatch: pytest.MonkeyPatch, ours: float, taken: bool) -> None:
    asked = []

    def compare(problem: Any) -> dict[str, Timing]:
        asked.append(problem)
        return {OURS: Timing((ours,)), LIBRARY: Timing((1.1,))}

    monkeypatch.setattr("tvm_na.measure.linear.compare_linear", compare)
    frozen._choose.cache_clear()
    with torch.no_grad(), freezing():
        assert operators_in(block(), torch.randn(1, 7, 7, 24))[0] == (OPERATORS if taken else [])
    assert len(asked) == 6 and len(set(asked)) == 4  # queries, keys and values are three products of one kind
    frozen._choose.cache_clear()


@pytest.mark.usefixtures("always")
def test_inductor_folds_what_packs_the_weights() -> None:
    model, x = nn.Sequential(block(dim=32), block(dim=32)), torch.randn(1, 9, 7, 32)  # each bias where kernels may read
    torch._dynamo.reset()
    with torch.no_grad(), freezing():
        wanted = model.double()(x.double())
        compiled = torch.compile(model.float())
        assert relative_error(compiled(x), wanted) <= 2 * GRADIENT_TOLERANCE["float32"]
        with torch.profiler.profile() as profile:
            compiled(x)
    calls = {event.key: event.count for event in profile.key_averages()}
    assert calls["tvm_na::residual_attention"] == calls["tvm_na::residual_mlp"] == 2
    assert not {"aten::constant_pad_nd", "aten::transpose", "aten::clone"} & calls.keys()
