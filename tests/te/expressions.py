"""Tensor expressions compiled as they stand, their signatures, and what may act on what."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tests import brute
from tests.helpers import Inputs, random_inputs
from tests.ops.gradients import NAMES, random_gradients
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.base import Problem


def compiled(func: Any) -> Any:
    """Not optimised: what is computed is the same, and a kernel takes a quarter of the time."""
    import tvm

    target = tvm.target.Target({"kind": "llvm", "opt-level": 0})
    return tvm.compile(tvm.IRModule({"main": func}), target=target)["main"]


def call(kernel: Any, arguments: Sequence[Tensor | None], outputs: Sequence[Tensor | None]) -> None:
    """Call a kernel with those tensors that are not None; what is no output stays as it is."""
    before = [None if t is None else t.clone() for t in arguments]
    kernel(*(t for t in (*arguments, *outputs) if t is not None))
    for was, now in zip(before, arguments, strict=True):
        torch.testing.assert_close(now, was, rtol=0, atol=0, equal_nan=True)


def gradients_by(
    kernel: Any, problem: NAProblem, inputs: Inputs, gradients: tuple[Tensor, Tensor | None], scale: float
) -> dict[str, Tensor]:
    """What a kernel of a problem's gradients writes over NaN, by name; the log-sum-exp, which none reads, is NaN."""
    query, key, value, rpb = inputs
    accum = getattr(torch, problem.accum_dtype)
    lse = torch.full(query.shape[:-1], torch.nan, dtype=accum)
    found = [torch.full_like(t, torch.nan) for t in inputs if t is not None]
    call(kernel, [query, key, value, torch.tensor([scale], dtype=accum), rpb, lse, *gradients], found)
    return dict(zip(NAMES, found, strict=False))


def assert_signature(func: Any, problem: Problem, shapes: dict[str, list[str]], accumulators: set[str]) -> None:
    """Arguments in the order that launchers rely on, a symbolic batch, and the problem as an attribute.

    Tensors are float16, the ``accumulators`` float32.
    """
    buffers = list(func.params)
    assert [b.name for b in buffers] == list(shapes)
    assert {b.name: [str(n) for n in b.shape] for b in buffers} == shapes
    assert {b.name: str(b.dtype) for b in buffers} == {n: "float32" if n in accumulators else "float16" for n in shapes}
    assert all(b.shape[0].same_as(buffers[0].shape[0]) for b in buffers if len(b.shape) > 3)
    assert type(problem).from_json(str(func.attrs["tvm_na.problem"])) == problem
    assert func.attrs["tvm_na.formulation"] == '{"formulation": "natural"}'
    assert func.attrs["global_symbol"] == "main"


def _spoilt(problem: NAProblem, tensor: Tensor, token: int, poison: float) -> Tensor:
    bad = tensor.detach().clone()
    bad.flatten(1, problem.rank)[:, token] = poison
    return bad


def assert_local(
    problem: NAProblem, run: Callable[[Inputs], Sequence[Tensor | None]], poison: float, step: int = 1
) -> None:
    """A poisoned key with its value acts on those outputs alone whose queries see it.

    Args:
        problem: The attention.
        run: Gives output and log-sum-exp or None.
        poison: NaN or infinite.
        step: One token in so many is tried, and the last.
    """
    mask, _ = brute.dense(problem)
    query, key, value, rpb = random_inputs(problem, 1, 0)
    clean = run((query, key, value, rpb))
    for token in {*range(0, len(mask), step), len(mask) - 1}:
        bad_key, bad_value = (_spoilt(problem, t, token, poison) for t in (key, value))
        found = run((query, bad_key, bad_value, rpb))
        blind = ~mask[:, token]
        for dirty, wanted in zip(found, clean, strict=True):
            if dirty is not None and wanted is not None:
                assert torch.equal(*(t.flatten(1, problem.rank)[:, blind] for t in (dirty, wanted))), token
        assert found[0] is not None
        assert not found[0].flatten(1, problem.rank)[:, ~blind].isfinite().any(), token


def assert_gradients_local(
    problem: NAProblem, run: Callable[[Inputs, Any], dict[str, Tensor]], poison: float, step: int = 1
) -> None:
    """A poisoned key acts on the gradients of queries that see it, and of keys that these see together with it.

    The poisoned gradient of an output acts on that of its query, of the keys that this sees, and of their entries of
    the bias. Arguments are those of :func:`assert_local`, but that ``run`` takes inputs, d_out and d_lse, and gives
    gradients by name.
    """
    mask, index = brute.dense(problem)
    query, key, value, rpb = random_inputs(problem, 1, 0)
    d_out, d_lse = random_gradients(problem, 1, 0)
    clean = run((query, key, value, rpb), (d_out, d_lse))

    def assert_same(found: dict[str, Tensor], part: str, which: Tensor) -> Tensor:
        """The other gradients of ``part``."""
        last = -1 if part == "d_rpb" else problem.rank
        dirty, wanted = (t[part].flatten(1, last) for t in (found, clean))
        assert torch.equal(dirty[:, which], wanted[:, which]), part
        return dirty[:, ~which]

    for token in range(0, len(mask), step):
        sees, seen = mask[:, token], mask[token]
        bad_key, bad_value = (_spoilt(problem, t, token, poison) for t in (key, value))
        found = run((query, bad_key, bad_value, rpb), (d_out, d_lse))
        apart = ~mask[sees].any(dim=0)
        assert not assert_same(found, "d_query", ~sees).isfinite().any(), token
        assert_same(found, "d_key", apart)
        assert_same(found, "d_value", apart)
        found = run((query, key, value, rpb), (_spoilt(problem, d_out, token, poison), d_lse))
        parts = {"d_query": torch.arange(len(mask)) != token, "d_key": ~seen, "d_value": ~seen}
        if problem.bias:
            entries = found["d_rpb"][0].numel()
            parts["d_rpb"] = torch.ones(entries, dtype=torch.bool).index_fill(0, index[token, seen], False)
        for part, which in parts.items():
            assert not assert_same(found, part, which).isfinite().any(), (part, token)
