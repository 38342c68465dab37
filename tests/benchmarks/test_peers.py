"""Other ways to compute neighborhood attention compute the same."""

from __future__ import annotations

import dataclasses
import sys
from unittest.mock import MagicMock

import pytest
import torch

from benchmarks import peer_modules, peers
from tests.brute import dense
from tvm_na.models.problems import problem_of_module
from tvm_na.nn import NeighborhoodAttention2D
from tvm_na.problems.attention import NAProblem
from tvm_na.reference import attention as reference
from tvm_na.reference.accuracy import ERROR_BUDGET, relative_error

PROBLEMS = [
    NAProblem.make((9, 6), 3, 2, 4),
    NAProblem.make((8, 9), (4, 5), 2, 4),
    NAProblem.make((11, 13), 3, 2, 4, dilation=(2, 3)),
    NAProblem.make((7, 7), 7, 1, 8),
    NAProblem.make((23,), 5, 2, 4, dilation=3),
    NAProblem.make((3, 5, 4), (2, 3, 3), 2, 4),
]
#: Those that need no other library.
OWN = [*peers.PEERS["cpu"][:3], peers.PEERS["cuda"][1]]


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """flex_attention in Python: compiled, it takes ten seconds a problem."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("peer", OWN, ids=lambda peer: peer.name.replace(", ", " "))
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_peer_computes_neighborhood_attention(peer, problem, bias, interpreted):
    if problem.rank != 2 and peer is OWN[-1]:
        pytest.skip("tiles are of maps")
    problem = dataclasses.replace(problem, bias=bias)
    tensors = [torch.randn(2, *problem.spatial, problem.heads, problem.head_dim) for _ in range(3)]
    doubles = [t.double() for t in tensors]
    rpb = torch.randn(problem.bias_shape) if bias else None
    scale, rpb64 = problem.head_dim**-0.5, None if rpb is None else rpb.double()
    expected = reference.neighborhood_attention(problem, *doubles, scale, rpb64)[0]
    with torch.inference_mode():
        out = peer.prepare(problem, "cpu", rpb)(*map(peer.layout, tensors))
    assert relative_error(peer.back(out, problem), expected) <= ERROR_BUDGET["float32"]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_masks_are_the_window(problem):
    expected, _ = dense(problem)
    assert torch.equal(peers.dense_mask(problem), expected)
    token = torch.arange(len(expected))
    zero = torch.tensor(0)
    assert torch.equal(peers.window_mask_mod(problem)(zero, zero, token[:, None], token), expected)


@pytest.mark.parametrize(("dilation", "bias"), [(1, True), (2, True), (1, False)])
def test_model_with_dense_masks_is_the_model(dilation, bias):
    torch.manual_seed(0)
    module = NeighborhoodAttention2D(16, 2, 3, dilation=dilation, rel_pos_bias=bias, backend="reference").eval()
    x = torch.randn(2, 7, 9, 16)
    peer = peer_modules.DenseMaskAttention(module, problem_of_module(module, x.shape))
    with torch.no_grad():
        assert relative_error(peer(x), module(x)) <= 1e-5


def test_peers_say_what_they_do_not_serve(monkeypatch):
    problem = NAProblem.make((8, 8), 3, 2, 4, is_causal=True)
    with pytest.raises(NotImplementedError, match="without causal"):
        peers.gather_einsum(problem, "cpu")
    biased = NAProblem.make((8, 8), 3, 2, 4, bias=True)
    for name in ("natten", "natten_mps"):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(NotImplementedError, match=f"{name} is not installed"):
            getattr(peers, name)(problem, "cpu")
        monkeypatch.setitem(sys.modules, name, MagicMock())
        with pytest.raises(NotImplementedError, match="without a bias"):
            getattr(peers, name)(biased, "cpu", torch.zeros(biased.bias_shape))


@pytest.mark.parametrize("size", [(7, 7), (14, 14), (16, 9)])
def test_tiles_are_another_order_of_tokens(size):
    problem = NAProblem.make(size, 3, 2, 4)
    order = peers.tile_order(problem)
    assert sorted(order.tolist()) == list(range(size[0] * size[1]))
    rows, columns = order // size[1], order % size[1]
    first = rows[: min(8, size[0]) * min(8, size[1])], columns[: min(8, size[0]) * min(8, size[1])]
    assert max(first[0].max(), first[1].max()) < 8  # the first tile
    t = torch.rand(2, *size, 2, 4)
    for peer in peers.PEERS["cuda"]:
        assert torch.equal(peer.back(peer.layout(t), problem), t), peer.name


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dilation", [1, 3])
def test_flex_in_a_model_computes_the_same(bias: bool, dilation: int) -> None:
    module = NeighborhoodAttention2D(32, 2, 5, dilation=dilation, rel_pos_bias=bias, backend="reference").eval()
    x = torch.randn(2, 16, 17, 32)
    with torch.inference_mode():
        if module.rpb is not None:
            module.rpb.normal_()
        peer = peer_modules.FlexAttention(module, problem_of_module(module, x.shape), compiled=False)
        assert relative_error(peer(x), module(x)) < 1e-5
