"""A linear layer by us and by the library: what is timed is the same layer."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from tests.conftest import TOLERANCE
from tests.helpers import relative_error
from tvm_na.measure import linear
from tvm_na.problems.dense import DenseProblem

MAKERS = [linear.launched, linear.by_mkl, linear.by_onednn]


@pytest.mark.parametrize("packs", [True, False])
@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_everybody_computes_the_whole_layer(monkeypatch, packs: bool, maker, residual: bool, activation: str) -> None:
    """Else its time would say nothing."""
    if not packs:
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    layer = linear.Layer.drawn(DenseProblem.make(5, 12, 7, activation=activation, residual=residual), 2)
    right = F.linear(layer.x, layer.weight, layer.bias)
    right = F.gelu(right) if activation == "gelu" else right
    right = right + layer.residual if residual else right
    assert relative_error(maker(layer)().view_as(right), right) <= 1e-5


@pytest.mark.parametrize("supported", [True, False])
def test_bfloat16_is_onednns_where_it_computes_in_it(monkeypatch, supported: bool) -> None:
    """So it is in Inductor, for whoever freezes weights."""
    drawn = linear.Layer.drawn(DenseProblem.make(5, 12, 7), 2)
    half = {name: getattr(drawn, name).bfloat16() for name in ("x", "weight", "bias")}
    layer = dataclasses.replace(drawn, **half)
    right = F.linear(*(t.double() for t in half.values()))
    asked = []

    def packed(weight: torch.Tensor, rows: int) -> torch.Tensor:
        asked.append(rows)
        return weight

    fake = SimpleNamespace(
        _is_mkldnn_bf16_supported=lambda: supported,
        _reorder_linear_weight=packed,
        _linear_pointwise=lambda x, weight, bias, *_: F.linear(x, weight, bias),
    )
    monkeypatch.setattr(torch.ops, "mkldnn", fake)
    for maker in (linear.by_mkl, linear.by_onednn):
        assert relative_error(maker(layer)().view_as(right), right) <= TOLERANCE["bfloat16"]
    assert asked == ([10, 10] if supported else [])


def test_int8_weights_are_widened() -> None:
    layer = linear.Layer.drawn(DenseProblem.make(5, 12, 7, activation="gelu", residual=True, weight_dtype="int8"), 2)
    assert layer.weight.dtype == torch.int8 and layer.weight_scale is not None
    wide = layer.weight.double() * layer.weight_scale.double()[:, None]
    right = F.gelu(F.linear(layer.x.double(), wide, layer.bias.double())) + layer.residual
    assert relative_error(linear.by_onednn(layer)().view_as(right), right) <= 1e-5


def test_both_are_timed_in_turns() -> None:
    found = linear.compare_linear(DenseProblem.make(9, 16, 24, activation="gelu", residual=True))
    assert set(found) == {linear.OURS, linear.LIBRARY}
    assert all(len(timing.samples) == linear.ROUNDS for timing in found.values())
