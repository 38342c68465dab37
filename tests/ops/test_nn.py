"""The modules: what they compute, small maps, bad arguments."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.conftest import TOLERANCE
from tests.helpers import relative_error
from tests.ops.gradients import assert_close
from tvm_na import NeighborhoodAttention1D, NeighborhoodAttention2D, NeighborhoodAttention3D, na2d


def by_hand(module: NeighborhoodAttention2D, x: torch.Tensor) -> torch.Tensor:
    """The module's formula, in float64."""
    parameters = {name: p.double() for name, p in module.named_parameters()}
    qkv = F.linear(x.double(), parameters["qkv.weight"], parameters.get("qkv.bias"))
    query, key, value = qkv.unflatten(-1, (3, module.num_heads, module.head_dim)).unbind(-3)
    window = (module.kernel_size, module.stride, module.dilation, module.is_causal)
    out = na2d(query, key, value, *window, module.scale, rpb=parameters.get("rpb"), backend="reference")
    return F.linear(out.flatten(-2), parameters["proj.weight"], parameters["proj.bias"])


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rel_pos_bias": True, "dilation": 2},
        {"qkv_bias": False, "is_causal": (True, False), "stride": (1, 2)},
        {"qk_scale": 0.1, "kernel_size": (2, 4)},
    ],
)
def test_the_module_is_its_formula(backend: str, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = NeighborhoodAttention2D(16, 2, **{"kernel_size": 3, **options}, backend=backend)
    x = torch.randn(2, 8, 9, 16)
    with torch.no_grad():
        assert relative_error(module(x), by_hand(module, x)) <= TOLERANCE["float32"]


def test_hooks_and_replacements_of_the_projection_are_called() -> None:
    module = NeighborhoodAttention2D(16, 2, 3)
    x = torch.randn(1, 5, 5, 16)
    with torch.no_grad():
        plain, seen = module(x), []
        handle = module.qkv.register_forward_hook(lambda *_: seen.append(1))
        assert relative_error(module(x), plain) <= TOLERANCE["float32"]
        handle.remove()
        assert seen == [1]

        class Doubled(torch.nn.Linear):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return 2 * super().forward(x)

        doubled = Doubled(16, 48)
        doubled.load_state_dict(module.qkv.state_dict())
        module.qkv = doubled
        assert relative_error(module(x), plain) > 0.1


def test_backward_hooks_of_the_projection_are_called() -> None:
    module, seen = NeighborhoodAttention2D(16, 2, 3, backend="reference"), []
    module.qkv.register_full_backward_hook(lambda *_: seen.append(1))
    module(torch.randn(1, 5, 5, 16, requires_grad=True)).sum().backward()
    assert seen == [1]


@pytest.mark.parametrize("size", [(4, 9), (9, 4), (3, 2), (1, 1), (6, 6)])
def test_a_map_smaller_than_the_window_is_padded_and_cropped(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    module = NeighborhoodAttention2D(16, 2, 3, dilation=2, rel_pos_bias=True, backend="compiled")
    x = torch.randn(2, *size, 16)
    padded = torch.zeros(2, max(size[0], 6), max(size[1], 6), 16)
    padded[:, : size[0], : size[1]] = x
    with torch.no_grad():
        out = module(x)
        assert out.shape == x.shape
        assert relative_error(out, by_hand(module, padded)[:, : size[0], : size[1]]) <= TOLERANCE["float32"]


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_gradients_of_a_map_that_is_padded(qkv_bias: bool) -> None:
    module = NeighborhoodAttention2D(16, 2, 5, qkv_bias=qkv_bias, rel_pos_bias=True, backend="compiled").double()
    x = torch.randn(2, 3, 4, 16, dtype=torch.float64, requires_grad=True)
    leaves = (x, *module.parameters())
    found = torch.autograd.grad(module(x).sin().sum(), leaves)
    whole = torch.nn.functional.pad(x, (0, 0, 0, 1, 0, 2))
    assert_close(found, torch.autograd.grad(by_hand(module, whole)[:, :3, :4].sin().sum(), leaves))


@pytest.mark.parametrize(
    ("module", "shape"),
    [(NeighborhoodAttention1D, (9,)), (NeighborhoodAttention1D, (2,)), (NeighborhoodAttention3D, (4, 2, 5))],
)
@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_other_ranks_and_gradients(module: Any, shape: tuple[int, ...], backend: str) -> None:
    layer = module(8, 2, 3, rel_pos_bias=True, backend=backend)
    x = torch.randn(2, *shape, 8, requires_grad=True)
    layer(x).square().sum().backward()
    for parameter in (x, *layer.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"embed_dim": 15}, ValueError, "embed_dim: required a multiple of num_heads=2, got 15"),
        ({"embed_dim": 16.0}, TypeError, "embed_dim: required an integer"),
        ({"num_heads": 0}, ValueError, "num_heads: required an integer >= 1"),
        ({"kernel_size": (3, 3, 3)}, ValueError, "kernel_size: required 2 values"),
        ({"kernel_size": True}, TypeError, "kernel_size: required an integer"),
        ({"stride": 4}, ValueError, "stride: required stride <= kernel_size"),
        ({"dilation": 0}, ValueError, "dilation: required an integer >= 1"),
        ({"is_causal": 1}, TypeError, "is_causal: required bool"),
        ({"qk_scale": float("nan")}, ValueError, "scale: required a finite number"),
        ({"backend": "fast"}, ValueError, "backend: required one of auto, compiled, reference"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        NeighborhoodAttention2D(**{"embed_dim": 16, "num_heads": 2, "kernel_size": 3, **arguments})


@pytest.mark.parametrize("shape", [(2, 8, 16), (2, 8, 8, 15), (8, 8, 8, 8, 16)])
def test_bad_input_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="x: required shape"):
        NeighborhoodAttention2D(16, 2, 3)(torch.zeros(shape))


def test_the_state_dict_has_natten_names() -> None:
    names = set(NeighborhoodAttention2D(16, 2, 3, rel_pos_bias=True).state_dict())
    assert names == {"qkv.weight", "qkv.bias", "rpb", "proj.weight", "proj.bias"}
    assert "rpb" not in NeighborhoodAttention2D(16, 2, 3).state_dict()
