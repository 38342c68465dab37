"""The operator as a whole, through na1d, na2d and na3d: random calls against the reference in float64, the corners of
maps against the definition, and where 32 bits end.

Three random calls at a time share a kernel, which takes about a second.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.brute import neighbors
from tests.conftest import TOLERANCE
from tests.helpers import (
    Inputs,
    build_all,
    forget_calls,
    random_additional,
    random_inputs,
    random_problem,
    relative_error,
    share,
)
from tests.ops.views import as_it_is, misaligned, negated, sliced, strided
from tvm_na import na1d, na2d, na3d
from tvm_na.jit import build
from tvm_na.ops import launch as launchers
from tvm_na.problems.attention import DTYPES, NAProblem
from tvm_na.reference import attention as reference

BLOCK = 30  # calls, and 10 kernels
HEAD_DIMS = (1, 2, 3, 5, 8, 13, 17, 32)
SIZES = {1: (1, 40), 2: (1, 14), 3: (1, 7)}


# --- random calls


VIEWS = (as_it_is, as_it_is, as_it_is, strided, sliced, misaligned, negated)


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of the operator; ``extra`` additional keys, or None for none; ``view`` makes its tensors views."""

    seed: int
    problem: NAProblem
    batch: int
    scale: float | None
    extra: int | None
    view: Any

    @property
    def kernel(self) -> NAProblem:
        """The problem of the kernel that serves it."""
        dtype = "float64" if self.problem.dtype == "float64" else "float32"
        lse = self.problem.return_lse or self.extra is not None
        return dataclasses.replace(self.problem, dtype=dtype, return_lse=lse)

    @property
    def factor(self) -> float:
        return self.problem.head_dim**-0.5 if self.scale is None else self.scale

    def budget(self, dtype: str) -> float:
        """What errors may come to: scores are rounded in proportion to their size."""
        return TOLERANCE[dtype] * max(1.0, abs(self.factor) * self.problem.head_dim**0.5)

    def tensors(self) -> tuple[Inputs, tuple[Tensor, Tensor] | tuple[None, None]]:
        """Query, key, value and bias; additional keys and values."""
        inputs = random_inputs(self.problem, self.batch, self.seed)
        if self.extra is None:
            return inputs, (None, None)
        return inputs, random_additional(self.problem, self.batch, self.extra, self.seed + 1)

    def run(self) -> list[Tensor]:
        """Output and, if it is asked for, log-sum-exp of the compiled operator."""
        p, (inputs, additional) = self.problem, self.tensors()
        query, key, value, rpb, keys, values = (None if t is None else self.view(t) for t in (*inputs, *additional))
        front = (na1d, na2d, na3d)[p.rank - 1]
        options = {"rpb": rpb, "return_lse": p.return_lse, "backend": "compiled"}
        found = front(query, key, value, *p.window, self.scale, keys, values, **options)
        return list(found) if p.return_lse else [found]

    def wanted(self) -> list[Tensor]:
        """The same by the reference, in float64."""
        inputs, additional = self.tensors()
        doubles = [None if t is None else t.double() for t in (*inputs, *additional)]
        found = reference.neighborhood_attention(self.problem, *doubles[:3], self.factor, *doubles[3:])
        return list(found[: 1 + self.problem.return_lse])


def drawn_scale(rng: random.Random, head_dim: int) -> float | None:
    """Any scale: most often the default or one of its size, else nothing, next to nothing, or much."""
    unit = head_dim**-0.5
    usual = [None, rng.uniform(-2, 2) * unit, rng.uniform(0, 2) * unit]
    return rng.choice([*usual, 0.0, -0.0, -unit, 1e-30, rng.choice([-1, 1]) * 10 ** rng.uniform(-6, 1) * unit])


def drawn(seed: int) -> Call:
    """The call of a seed. Three seeds in a row have the same kernel; every third kernel is for float64."""
    rng = random.Random(seed // 3)
    rank, head_dim = rng.choice([1, 2, 2, 3, 3]), rng.choice(HEAD_DIMS)
    dims = {"head_dim": head_dim, "head_dim_v": rng.choice([head_dim, rng.choice(HEAD_DIMS)])}
    kv = rng.randint(1, 2)
    heads = {"heads": kv * rng.choice([1, 1, 2, 3]), "heads_kv": kv}
    kernel = random_problem(rng, rank=rank, sizes=SIZES[rank], dtype="float64", **dims, **heads)
    rng = random.Random(f"call {seed}")
    dtype = "float64" if seed // 3 % 3 == 2 else ("float32", "float16", "bfloat16")[seed % 3]
    # Additional keys need the log-sum-exp, so a kernel with it serves calls with and without it.
    extra = rng.choice([None, 0, 1, 4, 9]) if kernel.return_lse else None
    lse = kernel.return_lse and (extra is None or rng.random() < 0.5)
    problem = dataclasses.replace(kernel, dtype=dtype, return_lse=lse)
    return Call(seed, problem, rng.randint(1, 3), drawn_scale(rng, head_dim), extra, rng.choice(VIEWS))


def at_corner(call: Call, corner: tuple[int, ...]) -> Tensor:
    """The output ``[batch, heads, head_dim_v]`` of one query, in float64 from a list of the keys that it sees."""
    p, (inputs, additional) = call.problem, call.tensors()
    query, key, value = (t.double() for t in inputs[:3])
    seen = list(itertools.product(*(neighbors(i, *axis) for i, axis in zip(corner, p.axes, strict=True))))
    group = p.heads // p.heads_kv
    at = tuple(torch.tensor(positions) for positions in zip(*seen, strict=True))
    keys, values = (t[(slice(None), *at)].repeat_interleave(group, dim=2) for t in (key, value))
    scores = torch.einsum("bhd,bnhd->bhn", query[(slice(None), *corner)], keys) * call.factor
    if inputs[3] is not None:
        steps = zip(at, corner, p.dilation, p.kernel_size, strict=True)
        scores = scores + inputs[3].double()[(slice(None), *((n - i) // d + k - 1 for n, i, d, k in steps))]
    if additional[0] is not None and additional[1] is not None:
        more_keys, more_values = (t.double().repeat_interleave(group, dim=2) for t in additional)
        more = torch.einsum("bhd,bnhd->bhn", query[(slice(None), *corner)], more_keys) * call.factor
        scores, values = torch.cat([scores, more], dim=-1), torch.cat([values, more_values], dim=1)
    return torch.einsum("bhn,bnhd->bhd", scores.softmax(dim=-1), values)


def assert_right(call: Call) -> None:
    found, wanted, note = call.run(), call.wanted(), f"{call}"
    dtype = call.problem.dtype
    assert found[0].dtype == getattr(torch, dtype)
    assert relative_error(found[0], wanted[0]) <= call.budget(dtype), note
    if call.problem.return_lse:
        accum = "float64" if dtype == "float64" else "float32"
        assert found[1].dtype == getattr(torch, accum)
        # Of a logarithm the absolute error counts, where it is small: with a scale of 1e-30 it may be next to nothing.
        error = (found[1].double() - wanted[1]).abs().max().item()
        assert error <= call.budget(accum) * max(1.0, wanted[1].abs().max().item()), note
    largest = wanted[0].abs().max()
    for corner in set(itertools.product(*((0, size - 1) for size in call.problem.spatial))):
        own = found[0][(slice(None), *corner)].double()
        assert (own - at_corner(call, corner)).abs().max() <= call.budget(dtype) * largest, f"{corner} of {note}"


@pytest.mark.parametrize("block", range(share(40)))
def test_random_calls_are_those_of_the_reference_and_corners_those_of_the_definition(block: int) -> None:
    calls = [drawn(seed) for seed in range(BLOCK * block, BLOCK * (block + 1))]
    build_all(call.kernel for call in calls)
    for call in calls:
        assert_right(call)


def test_draws_have_every_option() -> None:
    calls = [drawn(seed) for seed in range(600)]
    problems = [call.problem for call in calls]
    assert {p.dtype for p in problems} == set(DTYPES)
    assert {p.rank for p in problems} == {1, 2, 3}
    assert {p.head_dim for p in problems} == {p.head_dim_v for p in problems} == set(HEAD_DIMS)
    assert {1, 2, 3, 4, 7} <= {k for p in problems for k in p.kernel_size}
    assert {p.heads // p.heads_kv for p in problems} == {1, 2, 3}
    assert {call.view for call in calls} == set(VIEWS)
    assert {call.extra for call in calls} == {None, 0, 1, 4, 9}
    assert {0.0, None, 1e-30} <= {call.scale for call in calls}
    assert sum(call.scale is not None and call.scale < 0 for call in calls) > 100
    for rank in (1, 2, 3):
        causal = {p.is_causal for p in problems if p.rank == rank}
        assert causal == set(itertools.product((False, True), repeat=rank))
    axes = [axis for p in problems for axis in zip(p.spatial, p.kernel_size, p.stride, p.dilation, strict=True)]
    assert sum(size % d > 0 for size, _, _, d in axes) > 100  # uneven groups
    assert sum(1 < s < k for _, k, s, _ in axes) > 100
    assert sum(size == k * d for size, k, _, d in axes) > 100  # windows as large as the map
    assert len({call.kernel for call in calls}) <= 200


# --- where 32 bits end


def test_batches_too_large_for_32_bits_are_split_whatever_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [dataclasses.replace(drawn(seed), batch=3) for seed in range(BLOCK)]
    build_all(call.kernel for call in calls)
    for call in calls:
        forget_calls()
        monkeypatch.setattr("tvm_na.problems.base.MAX_ELEMENTS", 2 * call.problem.largest_copy)
        monkeypatch.setattr(NAProblem, "largest_constant", 0)
        assert call.kernel.largest_batch("llvm") == 2
        assert_right(call)


def one_number(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of any shape with the memory of one number."""
    return torch.zeros((), dtype=dtype).expand(shape)


LINE, PLANE, BOX = (1, 2**31, 1, 1), (1, 2**16, 2**15, 1, 1), (2, 2**10, 2**10, 2**11, 1, 1)
WIDE = (1, 2**12, 2**8, 2**11)
# name: (query's shape, value's head_dim, options)
TOO_LARGE: dict[str, tuple[tuple[int, ...], int, dict[str, Any]]] = {
    "one-axis": (LINE, 1, {}),
    "one-axis-longer": ((1, 2**40, 1, 1), 1, {"kernel_size": 2**39, "dilation": 2}),
    "two-axes": (PLANE, 1, {"is_causal": True}),
    "three-axes": (BOX, 1, {"dilation": 300}),
    "heads-and-channels": (WIDE, 2**11, {"return_lse": True}),
    "channels-of-values": ((1, 2**12, 2**8, 1), 2**11, {}),
    "half": (LINE, 1, {"dtype": torch.bfloat16}),
    "double": (LINE, 1, {"dtype": torch.float64, "return_lse": True}),
    "no-sample": ((0, *LINE[1:]), 1, {}),
    "window-of-the-map": (LINE, 1, {"kernel_size": 2**31}),
    "bias": ((1, 500, 500, 500, 3, 1), 1, {"kernel_size": 500, "rpb": (3, 999, 999, 999)}),
    "additional": (LINE, 1, {"extra": 3}),
    "gradient": (LINE, 1, {"gradient": True}),
}


@pytest.mark.parametrize("backend", ["compiled", "auto"])
@pytest.mark.parametrize(("shape", "head_dim_v", "options"), TOO_LARGE.values(), ids=TOO_LARGE)
def test_a_sample_too_large_for_32_bits_is_refused_before_anything_is_made(
    backend: str, shape: tuple[int, ...], head_dim_v: int, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(build, "kernel_for", lambda *a: made.append(a))
    monkeypatch.setattr(launchers, "make_launcher", lambda *a: made.append(a))
    options = {"kernel_size": 3, **options}
    dtype = options.pop("dtype", torch.float32)
    query, value = one_number(*shape, dtype=dtype), one_number(*shape[:-1], head_dim_v, dtype=dtype)
    key = query
    if options.pop("gradient", False):
        query = torch.zeros((), requires_grad=True).expand(shape)
    if extra := options.pop("extra", 0):
        at = (shape[0], extra, *shape[-2:])
        options |= {"additional_keys": one_number(*at), "additional_values": one_number(*at)}
    if "rpb" in options:
        options["rpb"] = one_number(*options["rpb"])
    front = (na1d, na2d, na3d)[len(shape) - 4]
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^query: required fewer than 2\^31 elements per sample, got "):
            front(query, key, value, backend=backend, **options)
    assert not made


def test_more_than_32_bits_of_scores_are_right() -> None:
    """No tensor has 2^31 elements, but the scores, of which a kernel keeps a tile at a time, number more."""
    length, kernel_size, heads = 2**15 + 3, 2**12, 16
    assert length * kernel_size * heads > 2**31
    call = Call(0, NAProblem.make(length, kernel_size, heads, 1, heads_kv=1), 1, None, None, as_it_is)
    out = call.run()[0].double()
    for i in (0, 5, 2**14, 2**15 - 1, length - 1):
        assert (out[:, i] - at_corner(call, (i,))).abs().max() <= TOLERANCE["float32"] * out.abs().max(), i


# --- what was let through before

Pair = namedtuple("Pair", "height width")
PLAIN = (2, 6, 7, 2, 8)


@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_a_tuple_of_another_class_is_checked_as_any(backend: str) -> None:
    query = torch.randn(PLAIN)
    same = [na2d(query, query, query, size, backend=backend) for size in (Pair(3, 1), (3, 1))]
    assert torch.equal(*same)
    with pytest.raises(TypeError, match="^kernel_size: required an integer, got bool True"):
        na2d(query, query, query, Pair(3, True), backend=backend)


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@pytest.mark.parametrize("argument", ["query", "key", "value", "rpb", "additional_keys"])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused(argument: str, backend: str) -> None:
    tensors: dict[str, Any] = {name: torch.zeros(PLAIN) for name in ("query", "key", "value")}
    tensors |= {name: torch.zeros(2, 3, 2, 8) for name in ("additional_keys", "additional_values")}
    tensors["rpb"] = torch.zeros(2, 5, 5)
    tensors[argument] = torch.nested.nested_tensor([t.clone() for t in tensors[argument]])
    with pytest.raises(TypeError, match=rf"^{argument}: required a dense \(strided\) tensor, got a nested tensor$"):
        na2d(**tensors, kernel_size=3, backend=backend)


@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_a_scale_is_finite_in_the_dtype_that_scores_are_computed_in(backend: str) -> None:
    query = torch.randn(PLAIN)
    largest = math.nextafter(2.0**127, 0)
    for factor in (largest, -largest):  # scores of zero, since anything else would overflow
        out = na2d(torch.zeros_like(query), query, query, 3, scale=factor, backend=backend)
        assert torch.equal(out, na2d(query, query, query, 3, scale=0.0, backend=backend))
    for dtype, factor in ((torch.float32, 2.0**127), (torch.bfloat16, -1e39), (torch.float64, 2.0**1023)):
        with pytest.raises(ValueError, match="^scale: required a finite number below 2.* in magnitude, got "):
            na2d(*[query.to(dtype)] * 3, 3, scale=factor, backend=backend)
    assert na2d(*[query.double()] * 3, 3, scale=1e39, backend=backend).isfinite().all()


@pytest.mark.parametrize("backend", ["compiled", "reference"])
def test_a_bias_of_minus_infinity_takes_keys_away(backend: str) -> None:
    problem = NAProblem.make((6, 7), 3, 2, 8, bias=True, return_lse=True)
    query, key, value, rpb = random_inputs(problem, 2, 0)
    assert rpb is not None
    rpb[:, :2] = rpb[:, :, 3:] = -math.inf  # what is left of a window is causal along both axes
    finite = rpb.masked_fill(rpb.isinf(), 0.0)
    inside = (slice(None), slice(1, -1), slice(1, -1))  # at borders are queries that no key is left of
    found = na2d(query, key, value, 3, rpb=rpb, return_lse=True, backend=backend)
    doubles = [t.double() for t in (query, key, value)]
    right = reference.neighborhood_attention(problem, *doubles, 8**-0.5, rpb.double())
    for got, want in zip(found, right, strict=True):
        assert want[inside].isfinite().all() and got[inside].isfinite().all()
        assert relative_error(got[inside], want[inside]) <= TOLERANCE["float32"]
    assert relative_error(na2d(query, key, value, 3, rpb=finite, backend=backend)[inside], right[0][inside]) > 0.01
