"""The halves of a block as operators: packed weights, what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers import relative_error
from tvm_na.ops import residual
from tvm_na.problems.dense import DenseProblem
from tvm_na.reference.dense_case import packed, reference
from tvm_na.te.dense.product import DenseTile


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("out", "channels", "vectors"), [(24, 16, 2), (20, 7, 2), (5, 3, 3)])
def test_weights_are_packed_as_kernels_read_them(out: int, channels: int, vectors: int, dtype: str) -> None:
    problem, tile = DenseProblem.make(9, channels, out, dtype=dtype), DenseTile(4, vectors, 8)
    weight = torch.randn(out, channels).to(getattr(torch, dtype))
    assert torch.equal(residual.packed(weight, tile.block), packed(weight[:, None], problem, tile))


def arguments_of_mlp(channels: int = 24, hidden: int = 40) -> dict[str, Any]:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 3, channels)
    first = residual.linear_problem(15, channels, hidden, x, activation="gelu")
    last = residual.linear_problem(15, hidden, channels, x, residual=True)
    weights = [torch.randn(hidden, channels) * 0.2, torch.randn(channels, hidden) * 0.2]
    blocks = [residual.block_of(problem) for problem in (first, last)]
    return {
        "x": x,
        "norm_weight": torch.randn(channels),
        "norm_bias": torch.randn(channels),
        "weights": [residual.packed(w, b) for w, b in zip(weights, blocks, strict=True)],
        "biases": [torch.randn(hidden), torch.randn(channels)],
        "eps": 1e-5,
        "plain": weights,
        "problems": (first, last),
    }


@pytest.mark.parametrize("layout", ["contiguous", "permuted", "shifted"])
def test_mlp_of_any_layout(layout: str) -> None:
    given = arguments_of_mlp()
    plain, (first, last) = given.pop("plain"), given.pop("problems")
    x = given["x"]
    normed = torch.nn.functional.layer_norm(
        x.double(), x.shape[-1:], given["norm_weight"].double(), given["norm_bias"].double(), 1e-5
    ).flatten(1, -2)
    hidden = reference(first, normed, plain[0][:, None], given["biases"][0], None)
    wanted = reference(last, hidden, plain[1][:, None], given["biases"][1], x.flatten(1, -2))
    if layout == "permuted":
        given["x"] = x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "shifted":  # a storage that begins where no kernel may read
        given["x"] = torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x)
    found = torch.ops.tvm_na.residual_mlp(**given)
    assert found.shape == x.shape
    assert relative_error(found.flatten(1, -2), wanted) <= 1e-5


def test_weights_packed_for_another_kernel_are_refused() -> None:
    given = arguments_of_mlp()
    (first, _), plain = given.pop("problems"), given.pop("plain")
    block = residual.block_of(first)
    given["weights"][0] = residual.packed(plain[0], block // 2)
    with pytest.raises(Exception, match=r"(?i)shape|mismatch|expect|invalid|require"):
        torch.ops.tvm_na.residual_mlp(**given)


def test_there_are_no_gradients() -> None:
    given = arguments_of_mlp()
    del given["plain"], given["problems"]
    given["biases"][0].requires_grad_()
    with pytest.raises(NotImplementedError, match="residual_mlp: required torch.no_grad"):
        torch.ops.tvm_na.residual_mlp(**given)
    with torch.no_grad():
        torch.ops.tvm_na.residual_mlp(**given)
