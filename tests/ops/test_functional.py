"""na1d, na2d, na3d: bad input, the choice of the backend, additional keys and values, merging."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad

from tests.conftest import TOLERANCE
from tests.helpers import assert_says, bad, forget_calls, random_additional, random_inputs, reference64, relative_error
from tests.problems.bad_calls import BAD_ADDITIONAL, BAD_CALLS, BAD_WINDOWS, KEYS, VALUES, arguments
from tvm_na import merge_attentions, na1d, na1d_qk, na2d, na2d_qk, na3d
from tvm_na.ops import attend, backend, calls
from tvm_na.problems import attention
from tvm_na.problems.attention import DTYPES, NAProblem
from tvm_na.reference import attention as reference

SHAPE = (2, 6, 7, 2, 8)


@pytest.fixture(autouse=True)
def _no_warning_was_given_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("tvm_na.ops.backend._warned", {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)  # PyTorch's own, of forward mode
        yield


BAD = [
    *(*BAD_CALLS, *BAD_WINDOWS, *BAD_ADDITIONAL),
    bad("scale", math.nan, ValueError),
    bad("scale", -math.inf, ValueError),
    bad("scale", 10**400, ValueError, name="huge"),
    bad("scale", True, TypeError),
    bad("scale", True, TypeError, name="one-as-bool", kernel_size=2),
    bad("scale", torch.ones(1), TypeError, name="tensor"),
    bad("backend", "cuda", ValueError),
    bad("backend", None, TypeError),
]


@pytest.mark.parametrize("backend", ["auto", "compiled", "reference"])
@pytest.mark.parametrize(("argument", "changes", "error", "says"), BAD)
def test_bad_input_is_named(backend: str, argument: str, changes: Any, error: type[Exception], says: Any) -> None:
    good = arguments(backend=backend)
    # Good calls before do not make a bad one pass that equals them.
    na2d(**good)
    na2d(**{**good, "kernel_size": (3, 1), "dilation": (1, 1), "is_causal": (False, False), "scale": 1})
    if argument.startswith("additional"):
        good |= {"additional_keys": KEYS, "additional_values": VALUES}
    with pytest.raises(error) as caught:
        na2d(**{**good, **changes})
    assert_says(caught, argument, error, ["got", *says])


@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_unusual_input_is_answered(backend: str) -> None:
    query, key, value, _ = random_inputs(NAProblem.make((6, 7), 3, 2, 8), 2, 0)
    uniform = na2d(query, key, value, 3, scale=0, backend=backend)
    expected = na2d(torch.zeros_like(query), key, value, 3, backend="reference")
    assert relative_error(uniform, expected) <= TOLERANCE["float32"]
    alone = na2d(query, key, value, 1, backend=backend)
    assert torch.equal(alone, value)
    negative = na2d(query, key, value, [3, 3], [1, 2], scale=-1.0, backend=backend)
    assert relative_error(negative, na2d(-query, key, value, 3, (1, 2), scale=1.0)) <= TOLERANCE["float32"]
    assert na2d(query[:0], key[:0], value[:0], 3, backend=backend).shape == (0, 6, 7, 2, 8)


def test_another_scale_is_not_another_call_to_remember() -> None:
    query = torch.randn(SHAPE)
    na2d(query, query, query, 3)
    known = len(calls._checked)
    for i in range(20):
        na2d(query, query, query, 3, scale=0.1 * i)
    assert len(calls._checked) == known


@pytest.mark.parametrize("function", [na2d, na2d_qk])
def test_a_first_call_normalises_its_window_once(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    query = torch.randn(SHAPE)
    arguments = (query, query, query) if function is na2d else (query, query)
    function(*arguments, (3, 3))  # its kernel is there
    forget_calls()
    seen, normalise = [], attention.per_axis_ints
    monkeypatch.setattr(attention, "per_axis_ints", lambda name, *rest: seen.append(name) or normalise(name, *rest))
    function(*arguments, (3, 3))
    assert sorted(seen) == ["dilation", "kernel_size", "spatial", "stride"]


def test_a_known_call_passes_the_dispatcher_by_unless_it_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    q = torch.randn(2, 6, 7, 2, 8)
    expected = na2d(q, q, q, 3)
    seen = []
    operator = attend.table.na_forward
    seeing = SimpleNamespace(na_forward=lambda *a: seen.append(a) or operator(*a))
    monkeypatch.setattr(attend, "table", seeing)
    assert torch.equal(na2d(q, q, q, 3), expected)
    assert torch.equal(na2d(q, q, q, 3, scale=0.0), na2d(q, q, q, 3, scale=0.0, backend="compiled"))
    assert not seen

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    def batched() -> torch.Tensor:
        return torch.func.vmap(lambda x: na2d(x, x, x, 3))(q.unsqueeze(1)).squeeze(1)

    def in_mode() -> torch.Tensor:
        with Watch():
            return na2d(q, q, q, 3)

    def profiled() -> torch.Tensor:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            out = na2d(q, q, q, 3)
        assert any("na_forward" in event.key for event in profile.key_averages())
        return out

    def on_device() -> torch.Tensor:
        with torch.device("cpu"):
            return na2d(q, q, q, 3)

    for watched in (batched, in_mode, profiled, on_device):
        seen.clear()
        assert torch.allclose(watched(), expected, atol=1e-6), watched
        assert seen, watched
    with torch.autograd.forward_ad.dual_level():
        seen.clear()
        na2d(q, q, q, 3)
        assert seen


LINE = torch.linspace(-1, 1, 72).view(1, 9, 2, 4)
FORWARD_MODE = {
    "attention": lambda query, backend: na1d(query, LINE, LINE, 3, backend=backend),
    "scores": lambda query, backend: na1d_qk(query, LINE, 3, backend=backend),
}


@pytest.mark.parametrize("name", FORWARD_MODE)
def test_auto_takes_the_reference_for_what_has_no_kernel_and_says_so_once(name: str) -> None:
    def tangent(of: str = "auto") -> torch.Tensor:
        with forward_ad.dual_level():
            out = FORWARD_MODE[name](forward_ad.make_dual(LINE, LINE.flip(1)), of)
            return forward_ad.unpack_dual(out).tangent

    def autocast() -> torch.Tensor:  # calls itself, which must not change of whom the warning is
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return tangent()

    for call in (tangent, autocast):
        backend._warned.clear()
        with pytest.warns(UserWarning, match="takes the eager reference: .* no forward-mode derivatives") as given:
            call()
        ours = [warning for warning in given if warning.category is UserWarning]  # PyTorch's own are deprecations
        assert len(ours) == 1
        assert ours[0].filename == __file__
        call()  # a second warning would be an error here
    assert torch.equal(tangent(), tangent("reference"))
    with pytest.raises(NotImplementedError, match="backend='compiled': .* no forward-mode derivatives"):
        tangent("compiled")


def test_the_backend_that_is_named_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    query = torch.randn(SHAPE)
    forget_calls()
    monkeypatch.setattr(attend, "launcher_for", lambda *_: lambda *_: ["compiled"])
    monkeypatch.setattr(attend.reference, "neighborhood_attention", lambda *_: ("reference", None))
    for name, who in (("auto", "compiled"), ("compiled", "compiled"), ("reference", "reference")):
        assert na2d(query, query, query, 3, backend=name) == who


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_and_three_axes(dtype: str) -> None:
    for function, problem in (
        (na1d, NAProblem.make(19, 3, 4, 4, heads_kv=2, dilation=2, bias=True, return_lse=True, dtype=dtype)),
        (na3d, NAProblem.make((4, 5, 6), (3, 2, 3), 2, 4, is_causal=(True, False, False), dtype=dtype)),
    ):
        inputs = random_inputs(problem, 2, 0)
        found = function(*inputs[:3], *problem.window, rpb=inputs[3], return_lse=True, backend="compiled")
        for out, right in zip(found, reference64(problem, inputs), strict=True):
            assert relative_error(out, right) <= TOLERANCE[dtype]
        with pytest.raises(ValueError, match="query: required"):
            na2d(*inputs[:3], 3)


@pytest.mark.parametrize("extra", [0, 1, 5])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (3, 1)])
def test_additional_keys_and_values(extra: int, heads: tuple[int, int]) -> None:
    problem = NAProblem.make(
        (6, 7), 3, heads[0], 8, heads_kv=heads[1], head_dim_v=5, bias=True, is_causal=(True, False)
    )
    inputs = random_inputs(problem, 2, 0)
    more = random_additional(problem, 2, extra, 1)
    call = {"is_causal": (True, False), "rpb": inputs[3], "return_lse": True, "scale": 0.6}
    out, lse = na2d(*inputs[:3], 3, additional_keys=more[0], additional_values=more[1], backend="compiled", **call)
    doubles = [x.double() for x in (*inputs[:3], inputs[3], *more) if x is not None]
    wanted, wanted_lse = reference.neighborhood_attention(problem, *doubles[:3], 0.6, *doubles[3:])
    assert relative_error(out, wanted) <= TOLERANCE["float32"]
    assert relative_error(lse, wanted_lse) <= TOLERANCE["float32"]


def test_merging_two_halves_of_the_keys_is_attention_to_all() -> None:
    query, keys, values = torch.randn(2, 5, 3, 4), torch.randn(2, 8, 3, 4), torch.randn(2, 8, 3, 4)
    parts = [attend._dense_attention(query, keys[:, a:b], values[:, a:b], 0.5) for a, b in ((0, 3), (3, 8))]
    out, lse = merge_attentions([p[0] for p in parts], [p[1] for p in parts])
    whole, whole_lse = attend._dense_attention(query, keys, values, 0.5)
    assert relative_error(out, whole) <= TOLERANCE["float32"]
    assert relative_error(lse, whole_lse) <= TOLERANCE["float32"]


def test_merging_what_does_not_fit_is_an_error() -> None:
    out, lse = torch.zeros(2, 5, 3, 4), torch.zeros(2, 5, 3)
    with pytest.raises(ValueError, match="outputs: required two or more"):
        merge_attentions([out], [lse])
    with pytest.raises(ValueError, match="outputs: required two or more"):
        merge_attentions([out, out], [lse])
    with pytest.raises(ValueError, match="lse_tensors: required"):
        merge_attentions([out, out], [lse, lse[:1]])


def test_gradients_flow_through_the_log_sum_exp() -> None:
    query = torch.randn(SHAPE, requires_grad=True)
    _, lse = na2d(query, query.detach(), query.detach(), 3, return_lse=True, backend="reference")
    lse.sum().backward()
    assert query.grad is not None
    assert query.grad.abs().sum() > 0
