"""The modules through the unfused operators: attention weights, and their dropout."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.conftest import TOLERANCE
from tests.helpers import relative_error
from tvm_na import NeighborhoodAttention1D, NeighborhoodAttention2D, NeighborhoodAttention3D
from tvm_na.functional import Backend

MODULES: dict[str, tuple[Any, tuple[int, ...], dict[str, Any]]] = {
    "1d": (NeighborhoodAttention1D, (9,), {"kernel_size": 4, "dilation": 2, "rel_pos_bias": True}),
    "2d": (NeighborhoodAttention2D, (7, 8), {"kernel_size": (3, 5), "is_causal": (True, False), "stride": (2, 1)}),
    "3d": (NeighborhoodAttention3D, (3, 4, 5), {"kernel_size": 3, "rel_pos_bias": True}),
    "padded": (NeighborhoodAttention2D, (4, 9), {"kernel_size": 5, "rel_pos_bias": True}),
}


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@pytest.mark.parametrize(("kind", "sizes", "options"), MODULES.values(), ids=MODULES)
def test_weights_come_with_the_output(kind: Any, sizes: tuple[int, ...], options: dict[str, Any], backend: str) -> None:
    module = kind(16, 2, **options, backend=backend)
    x = torch.randn(2, *sizes, 16)
    with torch.no_grad():
        out, weights = module(x, return_attention=True)
        plain = module(x)
    assert type(plain) is torch.Tensor
    assert relative_error(out, plain) <= TOLERANCE["float32"]
    window = torch.tensor(module.kernel_size).prod()
    assert weights.shape == (2, *sizes, 2, window)
    assert relative_error(weights.sum(-1), torch.ones(2, *sizes, 2)) <= 1e-6
    assert (weights == 0).any() == any(module.is_causal)


@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_weights_are_dropped_in_training_alone(backend: str) -> None:
    module = NeighborhoodAttention2D(16, 2, 3, rel_pos_bias=True, attn_drop=0.25, backend=backend)
    x = torch.randn(2, 6, 7, 16)
    module.eval()
    fused = module(x)
    assert torch.equal(fused, module(x))
    module.train()
    torch.manual_seed(3)
    out = module(x)
    torch.manual_seed(3)
    again, weights = module(x, return_attention=True)
    assert torch.equal(out, again)
    assert relative_error(out, fused) > 1e-3
    assert relative_error(weights.sum(-1), torch.ones(2, 6, 7, 2)) <= 1e-6  # before dropout
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_dropout_has_its_expectation_and_its_gradients() -> None:
    """Of the same mask, as an explicit product with it has them."""
    module = NeighborhoodAttention2D(8, 1, 3, attn_drop=0.5, backend="compiled").double()
    x = torch.randn(1, 5, 5, 8, dtype=torch.float64)
    torch.manual_seed(5)
    out = module(x)
    gradients = torch.autograd.grad(out.sum(), list(module.parameters()))
    torch.manual_seed(5)
    mask = F.dropout(torch.ones(1, 5, 5, 1, 9, dtype=torch.float64), 0.5)
    plain = NeighborhoodAttention2D(8, 1, 3, backend="reference").double()
    plain.load_state_dict(module.state_dict())
    plain.attn_drop = torch.nn.Identity()
    plain.attn_drop.forward = lambda weights: weights * mask  # type: ignore[method-assign]
    right = plain(x, return_attention=True)[0]
    assert relative_error(out, right) <= TOLERANCE["float64"]
    wanted = torch.autograd.grad(right.sum(), list(plain.parameters()))
    assert all(relative_error(a, b) <= 1e-12 for a, b in zip(gradients, wanted, strict=True))


def test_dropout_changes_no_name_and_no_position() -> None:
    names = set(NeighborhoodAttention2D(16, 2, 3, rel_pos_bias=True).state_dict())
    assert set(NeighborhoodAttention2D(16, 2, 3, rel_pos_bias=True, attn_drop=0.1).state_dict()) == names
    module = NeighborhoodAttention2D(16, 2, 3, 1, 1, False, True, None, 0.3)
    assert (module.proj_drop.p, module.attn_drop.p) == (0.3, 0.0)
    with pytest.raises(ValueError, match="dropout probability"):
        NeighborhoodAttention2D(16, 2, 3, attn_drop=1.5)


@pytest.mark.parametrize("in_steps", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("name", ["1d", "2d", "padded"])
def test_in_bfloat16_and_under_autocast(name: str, mixed: bool, in_steps: bool) -> None:
    kind, sizes, options = MODULES[name]
    module, x = kind(16, 2, **options, backend="compiled"), torch.randn(2, *sizes, 16)
    if not mixed:
        module, x = module.bfloat16(), x.bfloat16()
    exact = copy.deepcopy(module).double()
    exact.backend = Backend.REFERENCE
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        out, *weights = module(x, return_attention=True) if in_steps else (module(x),)
    right, *wanted = exact(x.double(), return_attention=True) if in_steps else (exact(x.double()),)
    for one, other in zip([out, *weights], [right, *wanted], strict=True):
        assert one.dtype == torch.bfloat16
        assert relative_error(one, other) <= 2 * TOLERANCE["bfloat16"]
    d_out = torch.randn_like(out)
    out.backward(d_out)
    right.backward(d_out.double())
    for one, other in zip(module.parameters(), exact.parameters(), strict=True):
        assert one.grad is not None and one.grad.dtype == one.dtype
        assert relative_error(one.grad, other.grad) <= 4 * TOLERANCE["bfloat16"]


def test_dropout_of_weights_under_autocast() -> None:
    module = NeighborhoodAttention2D(16, 2, 3, attn_drop=0.2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, weights = module(torch.randn(1, 5, 5, 16), return_attention=True)
    assert out.dtype == weights.dtype == torch.bfloat16
    out.float().sum().backward()
    assert module.qkv.weight.grad is not None
    assert module.qkv.weight.grad.dtype == torch.float32
