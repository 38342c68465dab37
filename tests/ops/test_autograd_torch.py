"""What in PyTorch asks for derivatives: compilers, mixed precision, torch.func, checkpoints, hooks, threads."""

from __future__ import annotations

import threading
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from tests.conftest import TOLERANCE
from tests.helpers import random_additional, relative_error, run_python
from tests.ops.gradients import NUMBERS, PROBLEM, assert_close, attend, leaves, same_as_reference, wanted
from tvm_na import NeighborhoodAttention2D, na2d
from tvm_na.ops import table as ops
from tvm_na.problems.attention import NAProblem


def ones(*tensors: Tensor) -> list[Tensor]:
    """The gradients of the sum of PROBLEM's output."""
    return wanted(PROBLEM, tensors, torch.ones_like(tensors[0]), None)


@pytest.mark.parametrize("extra", [0, 1, 3])
def test_additional_keys_and_values_have_gradients(extra: int) -> None:
    problem = NAProblem.make((4, 5), 3, 4, 4, heads_kv=2, head_dim_v=3, bias=True, dtype="float64")
    more = [t.requires_grad_() for t in random_additional(problem, 2, extra, 1)]

    def out_and_lse(backend: str, *t: Tensor) -> Any:
        call = {"rpb": t[3], "additional_keys": t[4], "additional_values": t[5], "return_lse": True}
        return na2d(*t[:3], 3, backend=backend, **call)

    def run(backend: str, *t: Tensor) -> Any:
        out, lse = out_and_lse(backend, *t)
        return torch.autograd.grad(out.sin().sum() + lse.cos().sum(), t)

    same_as_reference(run, *leaves(problem), *more)
    fixed = [t.detach() for t in leaves(problem)]
    found = [torch.autograd.grad(out_and_lse(b, *fixed, *more)[0].sum(), more) for b in ("compiled", "reference")]
    assert_close(*found)


# --- torch.compile


def train(model: Any, x: Tensor, mixed: bool, steps: int = 3) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def module(backend: str) -> nn.Module:
    torch.manual_seed(0)
    return NeighborhoodAttention2D(8, 2, 3, rel_pos_bias=True, backend=backend)


@pytest.mark.parametrize(
    ("compiler", "mixed"),
    [(None, False), (None, True), ("aot_eager", False), ("aot_eager", True), ("inductor", True)],
)
def test_a_module_trains_as_with_the_reference(compiler: str | None, mixed: bool) -> None:
    x = torch.randn(2, 5, 6, 8)
    torch._dynamo.reset()
    trained, right = module("compiled"), module("reference")
    model = trained if compiler is None else torch.compile(trained, fullgraph=True, backend=compiler)
    found, expected = train(model, x, mixed), train(right, x, mixed)
    assert found == pytest.approx(expected, rel=1e-2 if mixed else 1e-5)
    assert found[-1] < found[0]
    for p, q in zip(trained.parameters(), right.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None
        assert relative_error(p.grad, q.grad) <= (0.1 if mixed else 1e-4)


def test_a_compiled_call_with_lse_has_both_gradients_and_one_graph_for_every_batch() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def run(*t: Tensor) -> Any:
        out, lse = attend(PROBLEM, *t)
        return out.sin().sum() + lse.cos().sum()

    function = torch.compile(run, fullgraph=True, backend=counter)
    for batch in (2, 3, 5):
        tensors = leaves(batch=batch)
        for t in tensors[:3]:
            torch._dynamo.mark_dynamic(t, 0)
        assert_close(torch.autograd.grad(function(*tensors), tensors), torch.autograd.grad(run(*tensors), tensors))
    assert counter.frame_count == 1


# --- torch.autocast


@pytest.mark.parametrize("backend", ["compiled", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_casts_what_it_casts_for_the_attention_of_pytorch(backend: str, dtype: torch.dtype) -> None:
    query, key, value, rpb = (t.detach().float().requires_grad_() for t in leaves())
    plain, plain_lse = attend(PROBLEM, *(t.to(dtype) for t in (query, key, value, rpb)), backend=backend)
    with torch.autocast("cpu", dtype=dtype):
        out, lse = attend(PROBLEM, query, key.to(dtype), value.half(), rpb, backend=backend)
        assert F.scaled_dot_product_attention(query, key.to(dtype), value.half()).dtype == out.dtype == dtype
        doubles = [t.double() for t in (query, key, value)]
        assert F.scaled_dot_product_attention(*doubles).dtype == torch.float64
        assert attend(PROBLEM, *doubles, backend=backend)[0].dtype == torch.float64
        with pytest.raises(TypeError, match=f"key: required query's dtype torch.float64, got {dtype}"):
            attend(PROBLEM, doubles[0], key, value, backend=backend)
        with torch.autocast("cpu", enabled=False):
            assert attend(PROBLEM, query, key, value, rpb, backend=backend)[0].dtype == torch.float32
        meta = attend(PROBLEM, *(t.to("meta") for t in (query, key, value)))[0]
    assert meta.dtype == torch.float32
    assert lse.dtype == torch.float32
    assert relative_error(out, plain) <= TOLERANCE["bfloat16"]
    assert relative_error(lse, plain_lse) <= TOLERANCE["float32"]
    out.sum().backward()
    for t, right in zip((query, key, value, rpb), ones(query, key, value, rpb), strict=True):
        assert t.grad is not None
        assert t.grad.dtype == torch.float32
        assert relative_error(t.grad, right) <= 10 * TOLERANCE["bfloat16"]


def test_autocast_of_additional_keys_and_of_backward() -> None:
    tensors = [t.detach().float().requires_grad_() for t in leaves()]
    more = random_additional(NAProblem.make((4, 5), 3, 2, 4), 2, 3, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        call = {"rpb": tensors[3], "additional_keys": more[0], "additional_values": more[1], "backend": "compiled"}
        out, lse = na2d(*tensors[:3], 3, return_lse=True, **call)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    right = na2d(*tensors[:3], 3, rpb=tensors[3], additional_keys=more[0], additional_values=more[1])
    assert relative_error(out, right) <= TOLERANCE["bfloat16"]
    doubles = leaves()
    first = torch.autograd.grad(attend(PROBLEM, *doubles, lse=False).sin().sum(), doubles)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = torch.autograd.grad(attend(PROBLEM, *doubles, lse=False).sin().sum(), doubles, create_graph=True)
    assert_close([g.detach() for g in inside], first)


# --- torch.func


def loss(backend: str, *tensors: Tensor) -> Tensor:
    out, lse = attend(PROBLEM, *tensors, backend=backend)
    return out.sin().sum() + lse.cos().sum()


def test_grad_and_vjp() -> None:
    tensors = [t.detach() for t in leaves()]
    places = (0, 1, 2, 3)
    same_as_reference(lambda b, *t: torch.func.grad(lambda *u: loss(b, *u), argnums=places)(*t), *tensors)
    same_as_reference(lambda b, *t: torch.func.vjp(lambda *u: loss(b, *u), *t)[1](t[0].new_ones(())), *tensors)


@pytest.mark.parametrize("bias", ["none", "shared", "per sample"])
def test_gradients_of_each_sample(bias: str) -> None:
    query, key, value, rpb = (t.detach() for t in leaves(batch=3))
    tensors = [query[:, None], key[:, None], value[:, None]]
    places: tuple[Any, ...] = (0, 0, 0)
    if bias != "none":
        tensors.append(rpb if bias == "shared" else torch.stack([rpb, 2 * rpb, -rpb]))
        places = (*places, None if bias == "shared" else 0)

    def run(backend: str, *t: Tensor) -> Any:
        gradient = torch.func.grad(lambda *u: loss(backend, *u), argnums=tuple(range(len(t))))
        return torch.vmap(gradient, in_dims=places)(*t)

    same_as_reference(run, *tensors)


def test_vmap_takes_axes_anywhere_and_the_gradient_of_it_is_right() -> None:
    query, key, value, _ = (t.detach() for t in leaves(batch=3))

    def run(backend: str, *t: Tensor) -> Any:
        def mapped(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            both = torch.vmap(lambda *u: attend(PROBLEM, *u, backend=backend), in_dims=(1, None, 2), out_dims=3)
            out, lse = both(torch.stack([q, 2 * q], 1), k, torch.stack([v, -v], 2))
            return out.sin().sum() + lse.cos().sum()

        return torch.func.grad(mapped, argnums=(0, 1, 2))(*t)

    same_as_reference(run, query, key, value)


def test_transforms_of_transforms() -> None:
    problem = NAProblem.make((2, 3), 2, 1, 2, dtype="float64")
    query, key, value = (t.detach() for t in leaves(problem, 1))

    def of_query(backend: str) -> Any:
        return lambda q: attend(problem, q, key, value, lse=False, backend=backend).sin().sum()

    def gradient_of_gradient(backend: str, q: Tensor) -> Any:
        inner = torch.func.grad(of_query(backend))
        return [torch.func.grad(lambda x: inner(x).square().sum())(q)]

    same_as_reference(gradient_of_gradient, query)
    same_as_reference(lambda b, q: [torch.func.jacrev(torch.func.grad(of_query(b)))(q)], query)
    same_as_reference(lambda b, q: [torch.autograd.functional.hessian(of_query(b), q, vectorize=True)], query)


def test_many_gradients_at_once() -> None:
    def run(backend: str, *tensors: Tensor) -> Any:
        out = attend(PROBLEM, *tensors, lse=False, backend=backend)
        many = torch.stack([out.detach(), out.detach().cos()])
        found = torch.autograd.grad(out, tensors, many, is_grads_batched=True, create_graph=True)
        again = torch.autograd.grad(out, tensors, many, is_grads_batched=True)
        return [*(g.detach() for g in found), *again]

    attend(PROBLEM, *leaves(), lse=False)
    same_as_reference(run, *leaves())


def test_forward_mode_is_the_references(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tvm_na.ops.backend._warned", {})
    query, key, value, _ = (t.detach() for t in leaves())
    reason = "compiled kernels have no forward-mode derivatives"

    def jvp(function: Any) -> Any:
        return torch.func.jvp(lambda q: function(q), (query,), (key,))[1]

    def by(backend: str) -> Any:
        return lambda q: attend(PROBLEM, q, key, value, lse=False, backend=backend)

    with pytest.warns(UserWarning, match=f"takes the eager reference: {reason}") as given:
        found = jvp(by("auto"))
    assert [w.filename for w in given if w.category is UserWarning] == [attend.__code__.co_filename]
    assert torch.equal(found, jvp(by("reference")))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a second one would be
        jvp(by("auto"))
    operator = lambda q: ops.na_forward(q, key, value, None, *NUMBERS)  # noqa: E731
    around = (by("compiled"), operator, torch.vmap(operator), torch.func.grad(lambda q: operator(q).sum()))
    for function in around:
        arguments = (query[None], key[None]) if function is around[2] else (query, key)
        with pytest.raises(NotImplementedError, match=reason):
            torch.func.jvp(function, arguments[:1], arguments[1:])
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(query, key)
        assert torch.equal(forward_ad.unpack_dual(by("auto")(dual)).tangent, found)
        with pytest.raises(NotImplementedError, match=reason):
            by("compiled")(dual)
        assert forward_ad.unpack_dual(by("compiled")(query)).tangent is None


def test_what_a_transform_left_behind_counts_as_what_it_wrapped() -> None:
    query, key, value, rpb = leaves()
    attend(PROBLEM, query, key, value, rpb)
    kept: list[Tensor] = []
    torch.func.grad(lambda x: (kept.append(x), x.sum())[1])(query)
    found = torch.autograd.grad(attend(PROBLEM, kept[0], key, value, rpb)[0].sum(), [query])
    assert_close(found, ones(query, key, value, rpb)[:1])


# --- torch.utils.checkpoint, hooks, graphs, threads, processes


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpoints(reentrant: bool) -> None:
    tensors = leaves()
    for _ in range(2):
        out = checkpoint(lambda *t: attend(PROBLEM, *t, lse=False), *tensors, use_reentrant=reentrant)
        for t in tensors:
            t.grad = None
        out.sum().backward()
    assert_close([t.grad for t in tensors], ones(*tensors))


def test_hooks() -> None:
    tensors = leaves()
    packed: list[Tensor] = []
    for _ in range(2):
        handles = [t.register_hook(lambda g: 2 * g) for t in tensors]
        with torch.autograd.graph.saved_tensors_hooks(lambda t: packed.append(t) or t.clone(), lambda t: t):
            out = attend(PROBLEM, *tensors, lse=False)
        out.register_hook(lambda g: 3 * g)
        found = torch.autograd.grad(out.sum(), tensors)
        assert_close(found, [6 * g for g in ones(*tensors)])
        for handle in handles:
            handle.remove()
        assert sorted(t.shape for t in packed) == sorted([*(t.shape for t in tensors), out.shape[:-1]])
        packed.clear()


@pytest.mark.parametrize("direct", [True, False])
def test_errors_are_those_of_pytorch(direct: bool) -> None:
    tensors = leaves()
    attend(PROBLEM, *tensors)

    def call(*t: Tensor) -> tuple[Tensor, Tensor]:
        both: tuple[Tensor, Tensor] = attend(PROBLEM, *t) if direct else ops.na_forward_lse(*t, *NUMBERS)
        return both

    out, _ = call(*tensors)
    out.sum().backward(retain_graph=True)
    out.sum().backward()
    with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
        out.sum().backward()
    for place in range(4):
        changed = [t.clone() for t in tensors]
        out, _ = call(*changed)
        changed[place].add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()
    out, lse = call(*tensors)
    lse.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (out.sum() + lse.sum()).backward()


def test_backward_in_other_threads() -> None:
    tensors = leaves()
    outs = [attend(PROBLEM, *tensors, lse=False) for _ in range(5)]
    found: list[Any] = [None] * 5

    def run(i: int) -> None:
        found[i] = torch.autograd.grad(outs[i].sum(), tensors)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for gradients in found:
        assert_close(gradients, ones(*tensors))


def test_gradients_in_a_forked_process() -> None:
    # PyTorch's own loops over many elements hang there (those of a sum's gradient, or of allclose): none is used.
    code = """
        import os, torch
        from tvm_na import na2d
        tensors = [torch.randn(4, 24, 24, 4, 16, requires_grad=True) for _ in range(3)]
        d_out = torch.randn(4, 24, 24, 4, 16)
        def gradients():
            found = torch.autograd.grad(na2d(*tensors, 7, backend="compiled"), tensors, d_out)
            return [g.numpy() for g in found]
        before = gradients()
        child = os.fork()
        if child == 0:
            os._exit(int(max(abs(a - b).max() for a, b in zip(gradients(), before)) > 1e-4))
        assert os.waitpid(child, 0)[1] == 0
    """
    run_python(code)
