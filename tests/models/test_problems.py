"""The problems of a model at an input size."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.helpers import Function
from tvm_na.models import NAT, flops, problems_of
from tvm_na.models.problems import problem_of_module
from tvm_na.nn import NeighborhoodAttention1D, NeighborhoodAttention2D
from tvm_na.problems.attention import NAProblem
from tvm_na.reference import attention as reference


def test_maps_smaller_than_the_window_are_padded():
    model = NAT(embed_dim=64, depths=(1, 1, 1, 1), num_heads=(2, 4, 8, 16), num_classes=0)
    sizes = [problem.spatial for problem in problems_of(model, (200, 96))]
    assert sizes == [(50, 24), (25, 12), (13, 7), (7, 7)]


def test_dilation_and_no_bias():
    module = NeighborhoodAttention2D(32, 2, 3, stride=2, dilation=(2, 3), is_causal=(True, False))
    twice = Function(lambda m, x: m.attn(m.attn(m.stem(x).permute(0, 2, 3, 1))), stem=nn.Conv2d(3, 32, 1), attn=module)
    expected = NAProblem.make((8, 9), 3, 2, 16, stride=2, dilation=(2, 3), is_causal=(True, False))
    assert problems_of(twice, (8, 5)) == {expected: 2}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_dtype_is_that_of_the_weights(dtype):
    model = NAT(embed_dim=8, depths=(1,), num_heads=(2,), kernel_size=3, num_classes=0).to(dtype)
    (problem,) = problems_of(model, 32)
    assert problem.dtype == str(dtype).removeprefix("torch.")


def test_the_problems_are_those_that_calls_pose(monkeypatch):
    posed: list[NAProblem] = []
    attend = reference.neighborhood_attention
    model = NAT(embed_dim=8, depths=(2, 1), num_heads=(2, 2), kernel_size=5, num_classes=3, backend="reference")
    found = problems_of(model, (40, 24))

    def note(problem: NAProblem, *args):
        posed.append(problem)
        return attend(problem, *args)

    monkeypatch.setattr(reference, "neighborhood_attention", note)
    model.eval()(torch.randn(1, 3, 40, 24))
    assert {problem: posed.count(problem) for problem in posed} == found


@pytest.mark.parametrize("function", [problems_of, flops])
def test_the_model_stays_as_it_is(function):
    model = NAT(embed_dim=8, depths=(1,), num_heads=(2,), kernel_size=3, num_classes=4, backend="reference").train()
    before, weights = copy.deepcopy(model.state_dict()), [p.data_ptr() for p in model.parameters()]
    random_state = torch.random.get_rng_state()
    assert function(model, 32) == function(model, (32, 32)) != function(model, (32, 64))
    assert torch.equal(torch.random.get_rng_state(), random_state)
    assert model.training and not any(module._forward_hooks for module in model.modules())
    assert "forward" not in vars(model.levels[0].blocks[0].attn)
    assert [p.data_ptr() for p in model.parameters()] == weights
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 4)


def test_a_model_without_attention_poses_none():
    assert problems_of(nn.Conv2d(3, 4, 3), 8) == {}


@pytest.mark.parametrize("function", [problems_of, flops])
def test_bad_arguments(function):
    with pytest.raises(TypeError, match=r"^model: required a torch\.nn\.Module, got str"):
        function("nat_mini", 224)
    model = NAT(embed_dim=8, depths=(1,), num_heads=(2,), kernel_size=3)
    with pytest.raises(TypeError, match="input_size: required an integer"):
        function(model, 224.0)
    with pytest.raises(ValueError, match="input_size: required 2 values"):
        function(model, (224, 224, 3))
    with pytest.raises(ValueError, match="^input_size: required .*got 0"):
        function(model, 0)
    module = model.levels[0].blocks[0].attn
    module.qkv.weight.data = module.qkv.weight.data.to(torch.float8_e5m2)
    with pytest.raises(TypeError, match=r"^module: required parameters of dtype .*, got float8_e5m2"):
        function(model, 32)
    with pytest.raises(TypeError, match=r"module: required a neighborhood attention of tvm_na\.nn, got Linear"):
        problem_of_module(nn.Linear(2, 2), (1, 8, 8, 8))


def test_one_dimensional_modules_count():
    parts = {"attn": NeighborhoodAttention1D(8, 2, 3), "linear": nn.Linear(3, 8)}
    model = Function(lambda m, x: m.attn(m.linear(x.flatten(2).transpose(1, 2))), **parts)
    assert problems_of(model, (4, 5)) == {NAProblem.make(20, 3, 2, 4): 1}
