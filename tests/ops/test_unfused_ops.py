"""The unfused operators as PyTorch sees them, and the guards of their launchers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import TOLERANCE
from tests.helpers import forget_calls, relative_error
from tests.ops.views import channels_first, expanded, misaligned, negated, parameter, sliced, strided
from tvm_na import na2d_av, na2d_qk
from tvm_na.ops import launch as launchers
from tvm_na.ops import table as ops_unfused
from tvm_na.problems.unfused import UnfusedProblem

WINDOW: tuple[Any, ...] = ([3, 2], [1, 2], [2, 1], [False, True])
SIZES = {"query": 4, "key": 2, "value": 2}


def draw(dtype: torch.dtype = torch.float32, batch: int = 2) -> dict[str, Tensor]:
    """The tensors of all operators, for 7 x 6 queries, 4 heads, 2 of keys, 8 channels."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    found = {name: randn(batch, 7, 6, heads, 8) for name, heads in SIZES.items()}
    return {**found, "attn": randn(batch, 7, 6, 4, 6), "rpb": randn(4, 5, 3)}


def calls(tensors: dict[str, Tensor]) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Every operator and kind of call, with its arguments."""
    query, key, value, attn, rpb = (tensors[n] for n in ("query", "key", "value", "attn", "rpb"))
    return {
        "qk": (ops_unfused.na_qk, (query, key, None, *WINDOW, 0.5, False)),
        "qk rpb": (ops_unfused.na_qk, (query, key, rpb, *WINDOW, 0.5, False)),
        "dots": (ops_unfused.na_qk, (query, value, None, *WINDOW, 0.5, True)),
        "av": (ops_unfused.na_av, (attn, value, *WINDOW, 0.5)),
        "transposed": (ops_unfused.na_av_transposed, (attn, query, *WINDOW, 0.5, 2)),
        "bias": (ops_unfused.na_bias_sums, (attn, *WINDOW)),
    }


def finite(scores: Tensor) -> Tensor:
    return scores.masked_fill(scores == -math.inf, 0.0)


@pytest.mark.parametrize("name", calls(draw()))
def test_opcheck(name: str) -> None:
    operator, arguments = calls({n: t.requires_grad_() for n, t in draw().items()})[name]
    assert set(torch.library.opcheck(operator, arguments).values()) == {"SUCCESS"}


def attend(query: Tensor, key: Tensor, value: Tensor, rpb: Tensor) -> Tensor:
    scores = na2d_qk(query, key, *WINDOW, None, rpb=rpb, backend="compiled")
    return na2d_av(scores.softmax(dim=-1), value, *WINDOW, backend="compiled")


def test_compiled_as_one_graph_with_gradients_for_any_batch() -> None:
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (2, 3):
        found, right = [], []
        for function, into in ((compiled, found), (attend, right)):
            tensors = [draw(batch=batch)[n].requires_grad_() for n in ("query", "key", "value", "rpb")]
            out = function(*tensors)
            into += [out, *torch.autograd.grad(out.square().sum(), tensors)]
        assert all(relative_error(a, b) <= TOLERANCE["float32"] for a, b in zip(found, right, strict=True))


def test_torch_func_sees_the_derivatives() -> None:
    tensors = [draw(torch.float64)[n] for n in ("query", "key", "value", "rpb")]
    found = torch.func.grad(lambda *t: attend(*t).square().sum(), argnums=(0, 1, 2, 3))(*tensors)
    leaves = [t.requires_grad_() for t in tensors]
    right = torch.autograd.grad(attend(*leaves).square().sum(), leaves)
    assert all(relative_error(a, b) <= TOLERANCE["float64"] for a, b in zip(found, right, strict=True))


def test_there_are_no_kernels_for_other_devices() -> None:
    problem = UnfusedProblem.make("qk", (6, 7), 3, 2, 8)
    with pytest.raises(NotImplementedError, match="no kernel for qk of 6x7.* none for the device xpu"):
        launchers.launcher_of(problem, torch.device("xpu", 0))


def test_meta_tensors_give_shapes() -> None:
    meta = {name: t.to("meta") for name, t in draw().items()}
    shapes = {name: tuple(operator(*arguments).shape) for name, (operator, arguments) in calls(meta).items()}
    scores, heads, keys = (2, 7, 6, 4, 6), (2, 7, 6, 4, 8), (2, 7, 6, 2, 8)
    assert list(shapes.values()) == [scores, scores, scores, heads, keys, (4, 5, 3)]


VIEWS_OF_ALL = (misaligned, negated, sliced, parameter)
VIEWS_OF_MAPS = (*VIEWS_OF_ALL, strided, expanded, channels_first)


@pytest.mark.parametrize(
    ("which", "view"),
    [*itertools.product(("query", "key", "value", "attn"), VIEWS_OF_MAPS), *(("rpb", v) for v in VIEWS_OF_ALL)],
)
def test_any_view_gives_the_right_answer(which: str, view: Any) -> None:
    tensors = draw()
    tensors[which] = view(tensors[which])
    kept = tensors[which].clone()
    plain = {name: t.detach().resolve_neg().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    for (operator, arguments), (_, right) in zip(calls(tensors).values(), calls(plain).values(), strict=True):
        assert torch.equal(operator(*arguments), operator(*right))
    scores = na2d_qk(tensors["query"], tensors["key"], *WINDOW, rpb=tensors["rpb"], backend="compiled")
    assert torch.equal(scores, na2d_qk(plain["query"], plain["key"], *WINDOW, rpb=plain["rpb"], backend="compiled"))
    assert torch.equal(tensors[which], kept)


@pytest.mark.parametrize("name", calls(draw()))
def test_batches_that_are_too_large_and_empty(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = draw(torch.float64, batch=5)
    operator, arguments = calls(tensors)[name]
    right = operator(*arguments)
    problem = UnfusedProblem.make("qk", (7, 6), (3, 2), 4, 8, heads_kv=2, dilation=(2, 1))
    monkeypatch.setattr("tvm_na.problems.base.MAX_ELEMENTS", 2 * problem.largest_copy)
    forget_calls()
    assert relative_error(finite(operator(*arguments)), finite(right)) <= TOLERANCE["float64"]
    none = {n: t if n == "rpb" else t[:0] for n, t in tensors.items()}
    operator, arguments = calls(none)[name]
    out = operator(*arguments)
    assert out.shape == (right.shape if name == "bias" else (0, *right.shape[1:]))
    assert (out == 0).all()
    monkeypatch.setattr("tvm_na.problems.base.MAX_ELEMENTS", 100)
    forget_calls()
    first = "query" if name in ("qk", "qk rpb", "dots") else "attn"
    with pytest.raises(ValueError, match=rf"{first}: required fewer than 2\^31 elements per sample"):
        operator(*arguments)


def test_scores_count_for_the_bound_of_elements() -> None:
    few, many = (UnfusedProblem.make("qk", (64, 64), k, 1, 1) for k in (3, 63))
    assert few.largest_batch("llvm") > many.largest_batch("llvm")
    assert many.largest_batch("llvm") * 64 * 64 * 63 * 63 < 2**31
    wide = UnfusedProblem.make("qk", (256, 256), 255, 1, 1)
    assert wide.largest_batch("llvm") == 0


def test_the_operators_check_their_arguments() -> None:
    tensors = draw()
    for name, wrong, says in (
        ("qk rpb", {"rpb": tensors["rpb"][:3]}, "rpb: required shape"),
        ("av", {"attn": tensors["attn"][..., :5]}, "attn: required shape"),
        ("transposed", {"query": tensors["query"][:1]}, "query: required shape"),
        ("bias", {"attn": tensors["attn"][:, :5]}, "kernel_size: required kernel_size"),
    ):
        operator, arguments = calls({**tensors, **wrong})[name]
        with pytest.raises(ValueError, match=says):
            operator(*arguments)
    with pytest.raises(ValueError, match="rpb: required None where scores"):
        ops_unfused.na_qk(tensors["query"], tensors["key"], tensors["rpb"], *WINDOW, 1.0, True)
