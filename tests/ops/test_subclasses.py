"""Subclasses of Tensor: plain data of any class is computed as ever, one with rules of its own is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.masked import masked_tensor
from torch.utils._pytree import tree_map

from tests.helpers import assert_says
from tvm_na import NeighborhoodAttention2D, na2d, na2d_av, na2d_qk

SHAPE = (2, 6, 6, 2, 4)


class Plain(Tensor):
    """Data and a name for it."""


class Image(Tensor):
    """As torchvision's: what is computed of it is a plain tensor."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return function(*args, **(kwargs or {}))


class PlainParameter(nn.Parameter):
    pass


class Doubled(Tensor):
    """Is twice what its memory says."""

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def doubled(value: Any) -> Any:
            return value.as_subclass(Tensor) * 2 if isinstance(value, Doubled) else value

        with torch._C._DisableTorchDispatch():
            return function(*tree_map(doubled, args), **tree_map(doubled, kwargs or {}))


class Wrapped(Tensor):
    """Has no memory, but a tensor that has."""

    @staticmethod
    def __new__(cls, inner: Tensor) -> Wrapped:
        made = Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError("an operator was called")


@pytest.fixture(scope="module")
def distributed() -> Iterator[Callable[..., Tensor]]:
    """Makes a DTensor of a tensor, on a mesh of this process alone."""
    from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    yield lambda tensor, axis=0: distribute_tensor(tensor, mesh, [Shard(axis)])
    dist.destroy_process_group()


@pytest.mark.parametrize("make", [Plain, Image, PlainParameter, nn.Parameter, nn.Buffer])
@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_plain_data_of_any_class(make: Any, backend: str) -> None:
    plain = torch.rand(SHAPE)
    tensor = make(plain) if issubclass(make, (nn.Parameter, nn.Buffer)) else plain.as_subclass(make)
    expected = na2d(plain, plain, plain, 3, backend=backend)
    for args in ((tensor, tensor, tensor), (tensor, plain, plain), (plain, tensor, plain)):
        torch.testing.assert_close(na2d(*args, 3, backend=backend).as_subclass(Tensor), expected, rtol=0, atol=0)
    scores = na2d_qk(tensor, plain, 3, backend=backend)
    torch.testing.assert_close(scores.as_subclass(Tensor), na2d_qk(plain, plain, 3), rtol=1e-5, atol=1e-5)


def test_gradients_of_plain_data() -> None:
    plain = torch.rand(SHAPE, requires_grad=True)
    (expected,) = torch.autograd.grad(na2d(plain, plain, plain, 3).square().sum(), plain)
    tensor = plain.as_subclass(Plain)
    (found,) = torch.autograd.grad(na2d(tensor, tensor, tensor, 3).square().sum(), plain)
    torch.testing.assert_close(found.as_subclass(Tensor), expected)


CLASSES: dict[str, Callable[[Tensor], Tensor]] = {
    "Doubled": lambda tensor: tensor.as_subclass(Doubled),
    "Wrapped": Wrapped,
    "MaskedTensor": lambda tensor: masked_tensor(tensor, tensor > 0.5),
}


@pytest.mark.filterwarnings("ignore:.*MaskedTensors")
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", ["DTensor", *CLASSES])
def test_rules_of_their_own_are_refused(distributed: Callable[..., Tensor], name: str, backend: str) -> None:
    make = {**CLASSES, "DTensor": distributed}[name]
    plain, rpb, extra = torch.rand(SHAPE), torch.rand(2, 5, 5), torch.rand(2, 3, 2, 4)
    na2d(plain, plain, plain, 3, rpb=rpb)  # such a call is remembered
    tensors = {"query": plain, "key": plain, "value": plain, "rpb": rpb}
    more = {"additional_keys": extra, "additional_values": extra}
    for argument in (*tensors, *more):
        called = {**tensors, **(more if argument in more else {})}
        with pytest.raises(TypeError) as caught:
            na2d(**{**called, argument: make(called[argument])}, kernel_size=3, backend=backend)
        assert_says(caught, argument, TypeError, ("a plain tensor", name))
    attn = torch.rand(*SHAPE[:-1], 9)
    for function, args, argument in (
        (na2d_qk, (plain, make(plain)), "key"),
        (na2d_av, (make(attn), plain), "attn"),
        (na2d_av, (attn, make(plain)), "value"),
    ):
        with pytest.raises(TypeError) as caught:
            function(*args, 3, backend=backend)
        assert_says(caught, argument, TypeError, ("a plain tensor", name))


def test_a_module_says_which_tensor_is_distributed(distributed: Callable[..., Tensor]) -> None:
    module = NeighborhoodAttention2D(8, 2, 3, rel_pos_bias=True)
    module.rpb = nn.Parameter(distributed(module.rpb.detach()))
    with pytest.raises(TypeError, match="^rpb: required a plain tensor .*, got a DTensor"):
        module(torch.rand(1, 6, 6, 8))


def test_a_local_part_computes(distributed: Callable[..., Tensor]) -> None:
    plain = torch.rand(SHAPE)
    local = distributed(plain, axis=3).to_local()  # its heads
    assert torch.equal(na2d(local, local, local, 3), na2d(plain, plain, plain, 3))


def test_what_a_collective_has_yet_to_give_is_waited_for(distributed: Callable[..., Tensor]) -> None:
    from torch.distributed._functional_collectives import AsyncCollectiveTensor, all_reduce

    plain = torch.rand(SHAPE)
    coming = all_reduce(plain, "sum", distributed(plain).device_mesh.get_group())
    assert isinstance(coming, AsyncCollectiveTensor)
    assert torch.equal(na2d(coming, coming, coming, 3), na2d(plain, plain, plain, 3))


def test_tracers_and_transforms_are_no_strangers() -> None:
    plain = torch.rand(SHAPE)
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(plain)
        assert na2d(fake, fake, fake, 3).shape == SHAPE
    expected = na2d(plain, plain, plain, 3)
    functional = torch.func.functionalize(lambda x: na2d(x, x, x, 3))(plain)
    mapped = torch.vmap(lambda x: na2d(x[None], x[None], x[None], 3)[0])(plain)
    exported = torch.export.export(NeighborhoodAttention2D(8, 2, 3), (torch.rand(1, 6, 6, 8),))
    assert torch.equal(functional, expected) and torch.equal(mapped, expected)
    assert any("na_forward" in str(node.target) for node in exported.graph.nodes)


def test_compiled_code_refuses_and_computes_the_same(distributed: Callable[..., Tensor]) -> None:
    plain = torch.rand(SHAPE)
    compiled = torch.compile(lambda x: na2d(x, x, x, 3), backend="eager")
    expected = na2d(plain, plain, plain, 3)
    assert torch.equal(compiled(plain), expected)
    assert torch.equal(compiled(plain.as_subclass(Plain)).as_subclass(Tensor), expected)
    with pytest.raises(Exception, match="query: required a plain tensor"):
        compiled(distributed(plain))
