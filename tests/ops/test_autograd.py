"""Derivatives of the operator: their numbers, what they cost, what the launcher guards."""

from __future__ import annotations

import dataclasses
import functools
import random
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import TOLERANCE
from tests.helpers import build_all, forget_calls, random_additional, random_problem, relative_error, share
from tests.ops.gradients import (
    NAMES,
    NUMBERS,
    PROBLEM,
    assert_as_exact_as_pytorch,
    assert_close,
    attend,
    large_inputs,
    leaves,
    random_gradients,
    same_as_reference,
    wanted,
)
from tests.ops.views import misaligned, negated, strided
from tvm_na import na2d
from tvm_na.ops import fast_path as autograd
from tvm_na.ops import table as ops
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.reference import attention as reference
from tvm_na.unfused import na2d_av, na2d_qk


@pytest.fixture(autouse=True)
def _a_warning_is_an_error() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        yield


def drawn(seed: int) -> NAProblem:
    rng = random.Random(seed)
    dims = {"head_dim": rng.randint(1, 4), "head_dim_v": rng.randint(1, 4)}
    rank = rng.choice([1, 2, 2, 3])
    sizes = {1: (2, 16), 2: (2, 6), 3: (2, 4)}[rank]
    return random_problem(rng, rank=rank, sizes=sizes, heads=rng.randint(1, 3), dtype="float64", **dims)


@pytest.mark.parametrize("block", range(share(40)))
def test_random_problems_have_the_gradients_of_the_reference(block: int) -> None:
    """All elements against the reference's, and along random directions against differences."""
    seeds = range(10 * block, 10 * block + 10)
    problems = [drawn(seed) for seed in seeds]
    build_all([dataclasses.replace(p, return_lse=True) for p in problems] + [BackwardProblem(p) for p in problems])
    for seed, problem in zip(seeds, problems, strict=True):
        batch = 1 + seed % 2
        tensors = leaves(problem, batch, seed)
        if seed % 4 == 3:  # additional keys and values
            tensors += [t.requires_grad_() for t in random_additional(problem, batch, 1 + seed % 3, seed)]
        found = attend(problem, *tensors, lse=problem.return_lse)
        out, lse = found if problem.return_lse else (found, None)
        d_out, d_lse = torch.randn_like(out), None if lse is None else torch.randn_like(lse)
        results = [(r, d) for r, d in ((out, d_out), (lse, d_lse)) if r is not None]
        gradients = torch.autograd.grad([r for r, _ in results], tensors, [d for _, d in results])
        assert_close(gradients, wanted(problem, tensors, d_out, d_lse), note=f"{seed}: {problem}")
        assert gradcheck(functools.partial(attend, problem, lse=problem.return_lse), tensors, fast_mode=True), problem


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_gradients_have_the_accuracy_and_the_dtype_of_the_inputs(dtype: str) -> None:
    problem = NAProblem.make((6, 7), 3, 4, 8, heads_kv=2, head_dim_v=5, bias=True, dtype=dtype)
    tensors = leaves(problem)
    out, lse = attend(problem, *tensors)
    d_out, d_lse = torch.randn_like(out), torch.randn_like(lse)
    assert lse.dtype == torch.float32
    gradients = torch.autograd.grad((out, lse), tensors, (d_out, d_lse))
    assert [g.dtype for g in gradients] == [t.dtype for t in tensors]
    assert_close(gradients, wanted(problem, tensors, d_out, d_lse), dtype)


@pytest.mark.parametrize("way", ["fused", "unfused", "reference", "differentiable"])
def test_large_scores(way: str) -> None:
    """Gradients are as exact as PyTorch's, also those of the steps, and those that are differentiable themselves."""
    problem = NAProblem.make((6, 7), 3, 2, 16, bias=True)

    def run(inputs: Any, gradients: Any, scale: float) -> dict[str, Tensor]:
        query, key, value, rpb = tensors = [t.clone().requires_grad_() for t in inputs]
        if way == "unfused":
            out = na2d_av(na2d_qk(query, key, 3, scale=scale, rpb=rpb).softmax(dim=-1), value, 3)
        else:
            backend = "reference" if way == "reference" else "compiled"
            out = na2d(query, key, value, 3, scale=scale, rpb=rpb, backend=backend)
        found = torch.autograd.grad(out, tensors, gradients[0], create_graph=way == "differentiable")
        return dict(zip(NAMES, found, strict=True))

    assert_as_exact_as_pytorch(problem, run)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16"])
def test_scores_of_a_few_dozens_in_other_dtypes(dtype: str) -> None:
    problem = NAProblem.make((6, 7), 3, 2, 16, bias=True, dtype=dtype)
    tensors = [t.requires_grad_() for t in large_inputs(problem, 37.0) if t is not None]
    (d_out, _), scale = random_gradients(problem, 1), 0.25
    out = na2d(*tensors[:3], 3, scale=scale, rpb=tensors[3])
    assert_close(torch.autograd.grad(out, tensors, d_out), wanted(problem, tensors, d_out, None, scale), dtype)


# --- of gradients


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_the_formula_that_is_differentiable_is_the_derivative_of_the_reference(rank: int) -> None:
    rng = random.Random(rank)
    for seed in range(5):
        problem = random_problem(rng, rank=rank, sizes=(2, 5), head_dim=3, dtype="float64")
        tensors = leaves(problem, 2, seed)
        rpb = tensors[3] if problem.bias else None
        out, lse = reference.neighborhood_attention(problem, *tensors[:3], 0.6, rpb)
        d_out, d_lse = torch.randn_like(out), torch.randn_like(lse) if seed % 2 else None
        found = reference.gradients(problem, *tensors[:3], 0.6, rpb, d_out, d_lse)
        assert_close(found[: len(tensors)], wanted(problem, tensors, d_out, d_lse))


@pytest.mark.parametrize("lse", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_of_gradients(lse: bool, causal: bool) -> None:
    problem = NAProblem.make((4, 5), (2, 3), 2, 2, heads_kv=1, head_dim_v=3, is_causal=causal, dtype="float64")
    tensors = [*leaves(problem, 1), torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)]
    assert gradgradcheck(lambda *t: attend(problem, *t, lse=lse), tensors, fast_mode=True)
    numbers = ((2, 3), (1, 1), (1, 1), (causal, causal), 0.6)
    operator = ops.na_forward_lse if lse else ops.na_forward
    assert gradgradcheck(lambda *t: operator(*t, *numbers), tensors, fast_mode=True)
    assert gradgradcheck(lambda *t: attend(problem, *t[:3], lse=lse), tensors[:3], fast_mode=True)


def test_gradients_of_the_backward_operator_itself() -> None:
    tensors = leaves(batch=1)
    out, lse = (t.detach().requires_grad_() for t in attend(PROBLEM, *tensors))
    more = (lse, out.clone().detach().requires_grad_(), torch.randn_like(lse, requires_grad=True))
    assert gradcheck(lambda *t: ops.na_backward(*t, *NUMBERS), (*tensors, *more), fast_mode=True)


def test_third_derivatives() -> None:
    def third(backend: str, *tensors: Tensor) -> Any:
        value = attend(PROBLEM, *tensors, lse=False, backend=backend).sin().sum()
        for _ in range(2):
            value = sum(g.square().sum() for g in torch.autograd.grad(value, tensors, create_graph=True))
        return torch.autograd.grad(value, tensors)

    same_as_reference(third, *leaves(batch=1))


# --- what is asked for, and no more


@pytest.mark.parametrize("used", ["out", "lse", "both"])
def test_an_output_without_a_gradient_is_right_and_costs_nothing(used: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    make = autograd.launcher_for

    def launcher_for(problem: Any, device: torch.device) -> Any:
        if isinstance(problem, BackwardProblem):
            asked.append(problem.forward.return_lse)
        return make(problem, device)

    monkeypatch.setattr(autograd, "launcher_for", launcher_for)
    forget_calls()
    for function in (lambda *t: attend(PROBLEM, *t), lambda *t: ops.na_forward_lse(*t, *NUMBERS)):
        for seed in range(2):  # by the operator, then directly
            tensors = leaves(seed=seed)
            out, lse = function(*tensors)
            d_out = torch.randn_like(out) if used != "lse" else None
            d_lse = torch.randn_like(lse) if used != "out" else None
            results = [(r, d) for r, d in ((out, d_out), (lse, d_lse)) if d is not None]
            found = torch.autograd.grad(
                [r for r, _ in results], tensors, [d for _, d in results], allow_unused=True, materialize_grads=True
            )
            assert_close(found, wanted(PROBLEM, tensors, d_out, d_lse))
    assert asked == [used != "out"]  # without a gradient of lse, the kernel that knows of none


@pytest.mark.parametrize("which", [(0,), (1,), (2,), (3,), (0, 2), (1, 3)])
@pytest.mark.parametrize("direct", [True, False])
def test_only_gradients_that_are_needed(which: tuple[int, ...], direct: bool) -> None:
    tensors = leaves()
    for i, t in enumerate(tensors):
        t.requires_grad_(i in which)
    attend(PROBLEM, *tensors, lse=False)
    out = attend(PROBLEM, *tensors, lse=False) if direct else ops.na_forward(*tensors, *NUMBERS)
    out.sum().backward()
    right = wanted(PROBLEM, tensors, torch.ones_like(out), None)
    assert [t.grad is not None for t in tensors] == [i in which for i in range(4)]
    assert_close([tensors[i].grad for i in which], [right[i] for i in which])
    everything = leaves()
    out = attend(PROBLEM, *everything, lse=False)
    assert_close(torch.autograd.grad(out.sum(), [everything[i] for i in which]), [right[i] for i in which])


def test_one_tensor_in_every_place() -> None:
    def run(backend: str, x: Tensor) -> Any:
        return torch.autograd.grad(na2d(x, x, x, 3, backend=backend).sin().sum(), x)

    same_as_reference(run, torch.randn(2, 4, 5, 2, 4, dtype=torch.float64, requires_grad=True))


def test_gradients_add_up() -> None:
    tensors = leaves()
    for _ in range(3):
        attend(PROBLEM, *tensors, lse=False).sum().backward()
    right = wanted(PROBLEM, tensors, torch.ones(2, 4, 5, 2, 4), None)
    assert_close([t.grad for t in tensors], [3 * g for g in right])


def test_without_gradients_nothing_is_recorded() -> None:
    tensors = leaves()
    recorded = attend(PROBLEM, *tensors, lse=False)
    assert recorded.requires_grad
    for context in (torch.no_grad(), torch.inference_mode()):
        for _ in range(2):
            with context:
                out = attend(PROBLEM, *tensors, lse=False)
                again = ops.na_forward(*tensors, *NUMBERS)
            assert not out.requires_grad and not again.requires_grad
            assert out.is_inference() == again.is_inference() == isinstance(context, torch.inference_mode)
            assert torch.equal(out, again)
            assert relative_error(out, recorded) <= TOLERANCE["float64"]
    inside = out
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        attend(PROBLEM, inside, *tensors[1:], lse=False)


def test_two_runs_are_equal_to_the_bit() -> None:
    problem = NAProblem.make((12, 13), 5, 2, 8, bias=True)
    runs = []
    for _ in range(3):
        tensors = leaves(problem, 3)
        out, lse = attend(problem, *tensors)
        runs.append(torch.autograd.grad((out.sin().sum(), lse.sum()), tensors))
    for found in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], found, strict=True))


def test_a_known_call_is_launched_directly_both_ways_unless_it_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = leaves()
    attend(PROBLEM, *tensors)
    seen: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    with monkeypatch.context() as patch:
        for name in ("na_forward", "na_forward_lse", "na_backward"):
            patch.setattr(ops, name, None)
        out, lse = attend(PROBLEM, *tensors)
        (out.sum() + lse.sum()).backward()
    right = [t.grad for t in tensors]
    for inside_forward in (True, False):
        for t in tensors:
            t.grad = None
        seen.clear()
        if inside_forward:
            with Watch():
                out, lse = attend(PROBLEM, *tensors)
            assert "tvm_na.na_forward_lse.default" in seen
        else:
            out, lse = attend(PROBLEM, *tensors)
        with Watch():
            (out.sum() + lse.sum()).backward()
        assert "tvm_na.na_backward.default" in seen
        assert all(torch.equal(t.grad, g) for t, g in zip(tensors, right, strict=True))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        attend(PROBLEM, *tensors)[0].sum().backward()
    names = {event.key for event in profile.key_averages()}
    assert {"tvm_na::na_forward_lse", "tvm_na::na_backward"} <= names


# --- what the launcher guards


@pytest.mark.parametrize("view", [negated, misaligned, strided])
def test_any_view_has_the_right_gradients(view: Any) -> None:
    tensors = [view(t.detach()).requires_grad_() for t in leaves()]
    for _ in range(2):
        out, lse = attend(PROBLEM, *tensors)
        d_out, d_lse = view(torch.randn(out.shape).double()), view(torch.randn(lse.shape).double())
        found = torch.autograd.grad((out, lse), tensors, (d_out, d_lse))
        assert_close(found, wanted(PROBLEM, tensors, d_out, d_lse))
    expanded = torch.ones((), dtype=torch.float64).expand(out.shape)
    assert_close(
        torch.autograd.grad(attend(PROBLEM, *tensors)[0], tensors, expanded),
        wanted(PROBLEM, tensors, expanded, None),
    )


def test_an_empty_batch_has_no_gradients_but_a_bias_of_zero() -> None:
    for tensors in ([t if t.ndim == 3 else t.detach()[:0].requires_grad_() for t in leaves()] for _ in range(2)):
        out, lse = attend(PROBLEM, *tensors)
        found = torch.autograd.grad(out.sum() + lse.sum(), tensors)
        assert [g.shape for g in found] == [t.shape for t in tensors]
        assert not found[3].any()


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_a_batch_too_large_for_32_bits_is_split(monkeypatch: pytest.MonkeyPatch, batch: int, dtype: str) -> None:
    problem = NAProblem(**{**vars(PROBLEM), "dtype": dtype})
    monkeypatch.setattr("tvm_na.problems.base.MAX_ELEMENTS", 2 * problem.largest_copy)
    forget_calls()
    assert (problem.largest_batch("llvm"), BackwardProblem(problem).largest_batch("llvm")) == (2, 1)
    tensors = leaves(problem, batch)
    for _ in range(2):
        out, lse = attend(problem, *tensors)
        d_out, d_lse = torch.randn_like(out), torch.randn_like(lse)
        found = torch.autograd.grad((out, lse), tensors, (d_out, d_lse))
        assert_close(found, wanted(problem, tensors, d_out, d_lse), dtype)


@pytest.mark.parametrize("bias", [True, False])
def test_opcheck(bias: bool) -> None:
    def passes(operator: Any, *arguments: Any) -> bool:
        return set(torch.library.opcheck(operator, (*arguments, *NUMBERS)).values()) == {"SUCCESS"}

    tensors: list[Any] = leaves(batch=1)
    tensors[3] = tensors[3] if bias else None
    assert passes(ops.na_forward if bias else ops.na_forward_lse, *tensors)
    plain = [None if t is None else t.detach() for t in tensors]
    out, lse = ops.na_forward_lse(*plain, *NUMBERS)
    assert passes(ops.na_backward, *plain, lse, out, torch.randn_like(lse) if bias else None)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "lse-shape": ({"lse": torch.zeros(2, 4, 5, 1).double()}, ValueError, "lse"),
    "lse-rank": ({"lse": torch.zeros(2, 4, 5).double()}, ValueError, "lse"),
    "lse-dtype": ({"lse": torch.zeros(2, 4, 5, 2)}, TypeError, "lse"),
    "lse-meta": ({"lse": torch.zeros(2, 4, 5, 2, device="meta").double()}, ValueError, "lse"),
    "d_out-shape": ({"d_out": torch.zeros(2, 4, 5, 2, 3).double()}, ValueError, "d_out"),
    "d_out-dtype": ({"d_out": torch.zeros(2, 4, 5, 2, 4)}, TypeError, "d_out"),
    "d_out-meta": ({"d_out": torch.zeros(2, 4, 5, 2, 4, device="meta").double()}, ValueError, "d_out"),
    "d_lse-shape": ({"d_lse": torch.zeros(1, 4, 5, 2).double()}, ValueError, "d_lse"),
    "d_lse-dtype": ({"d_lse": torch.zeros(2, 4, 5, 2).half()}, TypeError, "d_lse"),
    "rpb-shape": ({"rpb": torch.zeros(2, 5, 4).double()}, ValueError, "rpb"),
}


@pytest.mark.parametrize(("change", "error", "argument"), BAD.values(), ids=BAD)
def test_bad_input_of_the_backward_operator_is_named(
    change: dict[str, Any], error: type[Exception], argument: str
) -> None:
    query, key, value, rpb = (t.detach() for t in leaves())
    good = {"query": query, "key": key, "value": value, "rpb": rpb, "lse": torch.zeros(2, 4, 5, 2).double()}
    good |= {"d_out": torch.zeros_like(query), "d_lse": None}
    ops.na_backward(*good.values(), *NUMBERS)
    with pytest.raises(error) as caught:
        ops.na_backward(*{**good, **change}.values(), *NUMBERS)
    assert str(caught.value).startswith(f"{argument}: required "), caught.value
    assert "got" in str(caught.value)
