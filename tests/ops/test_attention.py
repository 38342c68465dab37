"""The torch operator: registration, tracing, guards of the launcher."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.conftest import TOLERANCE
from tests.helpers import forget_calls, random_inputs, reference64, relative_error
from tests.ops.views import channels_first, expanded, misaligned, negated, parameter, sliced, strided
from tvm_na import NeighborhoodAttention2D, na2d
from tvm_na.ops import launch as launchers
from tvm_na.problems.attention import NAProblem

PROBLEM = NAProblem.make((6, 7), 3, 2, 8, bias=True)
WINDOW: tuple[Any, ...] = ([3, 3], [1, 1], [1, 1], [False, False], 0.5)


def compiled(*tensors: Any, **options: Any) -> Any:
    return na2d(*tensors[:3], 3, scale=0.5, rpb=tensors[3], backend="compiled", **options)


@pytest.mark.parametrize("op", [torch.ops.tvm_na.na_forward, torch.ops.tvm_na.na_forward_lse])
@pytest.mark.parametrize("bias", [True, False])
def test_opcheck(op: Any, bias: bool) -> None:
    query, key, value, rpb = random_inputs(PROBLEM, 2, 0)
    result = torch.library.opcheck(op.default, (query, key, value, rpb if bias else None, *WINDOW))
    assert set(result.values()) == {"SUCCESS"}
    # Views with other strides, as a module's qkv projection gives them.
    views = torch.randn(2, 6, 7, 3, 2, 8).unbind(3)
    result = torch.library.opcheck(op.default, (*views, rpb if bias else None, *WINDOW))
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("view", [strided, misaligned, negated, sliced, expanded, channels_first, parameter])
@pytest.mark.parametrize("which", [[0], [1], [2], [3], [0, 1, 2]], ids=["query", "key", "value", "rpb", "all"])
def test_any_view_gives_the_right_answer(view: Any, which: list[int]) -> None:
    tensors: list[Any] = list(random_inputs(PROBLEM, 2, 1))
    for i in which:
        tensors[i] = view(tensors[i])
    wanted = reference64(PROBLEM, tuple(t.clone() for t in tensors), 0.5)[0]  # type: ignore[arg-type]
    kept = [t.clone() for t in tensors]
    assert relative_error(compiled(*tensors), wanted) <= TOLERANCE["float32"]
    assert all(torch.equal(a, b) for a, b in zip(tensors, kept, strict=True))


def test_sizes_of_one_with_odd_strides() -> None:
    problem = NAProblem.make((6, 7), 3, 1, 8)
    query, key, value, _ = random_inputs(problem, 1, 1)
    odd = query.as_strided(query.shape, (999, 56, 8, 3, 1))
    out = na2d(odd, key, value, 3, scale=0.5, backend="compiled")
    assert relative_error(out, reference64(problem, (query, key, value, None), 0.5)[0]) <= TOLERANCE["float32"]


@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_a_batch_too_large_for_32_bits_is_split(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    problem = NAProblem.make((5, 9), 3, 1, 4, return_lse=True)
    monkeypatch.setattr("tvm_na.problems.base.MAX_ELEMENTS", 2 * problem.largest_copy)
    forget_calls()
    query, key, value, _ = random_inputs(problem, batch, 1)
    out, lse = na2d(query, key, value, 3, scale=0.5, return_lse=True, backend="compiled")
    wanted, wanted_lse = reference64(problem, (query, key, value, None), 0.5)
    assert relative_error(out, wanted) <= TOLERANCE["float32"]
    assert relative_error(lse, wanted_lse) <= TOLERANCE["float32"]
    monkeypatch.setattr("tvm_na.problems.base.MAX_ELEMENTS", 100)
    forget_calls()
    with pytest.raises(ValueError, match=r"query: required fewer than 2\^31 elements"):
        na2d(query, key, value, 3, backend="compiled")


def test_an_empty_batch_is_an_answer() -> None:
    tensors = [t if i == 3 else t[:0] for i, t in enumerate(random_inputs(PROBLEM, 1, 0)) if t is not None]
    out, lse = compiled(*tensors, return_lse=True)
    assert out.shape == (0, 6, 7, 2, 8)
    assert lse.shape == (0, 6, 7, 2)


def test_meta_tensors_give_shapes() -> None:
    query, key, value, _ = (None if t is None else t.to("meta") for t in random_inputs(PROBLEM, 3, 0))
    out, lse = na2d(query, key, value[..., :5], 3, return_lse=True)
    assert (out.shape, out.device.type) == ((3, 6, 7, 2, 5), "meta")
    assert (lse.shape, lse.dtype) == ((3, 6, 7, 2), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_of_halves_are_float32(dtype: torch.dtype) -> None:
    inputs = tuple(None if t is None else t.to(dtype) for t in random_inputs(PROBLEM, 2, 0))
    out, lse = compiled(*inputs, return_lse=True)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    wanted, wanted_lse = reference64(PROBLEM, inputs, 0.5)  # type: ignore[arg-type]
    assert relative_error(out, wanted) <= TOLERANCE[str(dtype).removeprefix("torch.")]
    assert relative_error(lse, wanted_lse) <= TOLERANCE["float32"]


def test_compile_fullgraph() -> None:
    tensors = random_inputs(PROBLEM, 2, 0)
    function = torch.compile(lambda *t: compiled(*t, return_lse=True)[0] * 2, fullgraph=True)
    wanted = 2 * compiled(*tensors)
    assert relative_error(function(*tensors), wanted) <= TOLERANCE["float32"]


def test_compile_with_a_dynamic_batch_compiles_once() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("eager")
    function = torch.compile(lambda q, k, v: na2d(q, k, v, 3, backend="compiled"), fullgraph=True, backend=counter)
    for batch in (2, 3, 7):
        tensors = random_inputs(PROBLEM, batch, batch)[:3]
        for t in tensors:
            torch._dynamo.mark_dynamic(t, 0)
        assert relative_error(function(*tensors), na2d(*tensors, 3)) <= TOLERANCE["float32"]
    assert counter.frame_count == 1


@pytest.mark.parametrize("grad", [False, True])
def test_export_with_a_dynamic_batch(grad: bool) -> None:
    torch.manual_seed(0)
    module = NeighborhoodAttention2D(16, 2, 3, dilation=2, rel_pos_bias=True).eval().requires_grad_(grad)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(module, (torch.randn(2, 8, 9, 16),), dynamic_shapes=({0: batch},))
    targets = [str(node.target) for node in program.graph.nodes]
    assert "tvm_na.na_forward.default" in targets
    with torch.no_grad():
        for size in (1, 3):
            x = torch.randn(size, 8, 9, 16)
            assert relative_error(program.module()(x), module(x)) <= TOLERANCE["float32"]


def test_inference_mode_before_and_after() -> None:
    tensors = random_inputs(PROBLEM, 1, 4)
    launchers._scale_tensor.cache_clear()
    with torch.inference_mode():
        inside = compiled(*tensors)
    assert torch.equal(inside.clone(), compiled(*tensors))


def test_vmap_over_the_batch_of_batches() -> None:
    tensors = [torch.randn(3, 2, 6, 7, 2, 8) for _ in range(3)]
    out = torch.vmap(lambda q, k, v: na2d(q, k, v, 3, backend="compiled"))(*tensors)
    for i in range(3):
        assert torch.equal(out[i], na2d(*(t[i] for t in tensors), 3, backend="compiled"))
