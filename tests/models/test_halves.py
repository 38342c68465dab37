"""Models in half precision: made in it, turned into it, and under autocast with weights of float32."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import TOLERANCE
from tests.helpers import relative_error
from tests.models.random_models import FAMILIES, assert_same, attentions, loaded, made, small
from tvm_na.models import NAModel, attention_maps, create_model
from tvm_na.models.attention_maps import attention_of_query

#: Every family in one of the dtypes, one family in both.
CASES = [*((family, torch.bfloat16) for family in FAMILIES), ("nat", torch.float16)]
#: Rounded once per layer, of which there are few: so many of an operator's errors.
LAYERS = 4


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def model_of(family: str = "nat", **options: Any) -> NAModel:
    """A small model whose numbers neither vanish nor leave float16, with a LayerScale if its family has any."""
    make, sizes = FAMILIES[family]
    scale = {"layer_scale": 0.5, "depths": (1, 1), "num_heads": (1, 2)} if family == "nat" else {}
    model = made(make, **{**sizes, "backend": "compiled", **scale, **options})
    for attention in attentions(model):
        nn.init.normal_(attention.rpb)
    return model


# --- made in a dtype


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", torch.bfloat16, None])
def test_a_model_is_made_in_a_dtype(dtype: Any) -> None:
    options = {"depth": 1, "embed_dim": 32, "num_heads": 1, "num_classes": 3}
    torch.manual_seed(0)
    plain = create_model("vitrpb_small", **options)
    torch.manual_seed(0)
    model = create_model("vitrpb_small", **options, dtype=dtype)
    wanted = torch.float32 if dtype is None else getattr(torch, name_of(dtype))
    assert {p.dtype for p in model.parameters()} == {wanted}
    assert {b.dtype for b in model.buffers()} == {torch.int64}
    assert_same(model, {key: v.to(wanted) if v.is_floating_point() else v for key, v in plain.state_dict().items()})


@pytest.mark.parametrize(
    ("dtype", "error", "message"),
    [
        ("int8", ValueError, "dtype: required float16, bfloat16, float32, float64, got 'int8'"),
        ("torch.bfloat16", ValueError, "dtype: required .* got 'torch.bfloat16'"),
        (torch.complex64, ValueError, "dtype: required .* got torch.complex64"),
        (16, TypeError, "dtype: required a torch.dtype or its name, got int 16"),
    ],
)
def test_another_dtype_is_refused(dtype: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        create_model("nat_pico", dtype=dtype)


@pytest.mark.parametrize(("of", "into"), [(torch.float32, torch.bfloat16), (torch.float16, torch.float32)])
def test_a_checkpoint_of_one_dtype_loads_into_another(of: torch.dtype, into: torch.dtype, tmp_path: Path) -> None:
    saved, model = small(0).to(of), small(1).to(into)
    assert loaded(model, saved, tmp_path / "weights.safetensors").adapted == ()
    assert_same(model, {key: value.to(into) for key, value in saved.state_dict().items()})


def test_a_resized_bias_is_rounded_to_the_model_alone(tmp_path: Path) -> None:
    saved, model = small(0).bfloat16(), small(1, kernel_size=5)
    loaded(model, saved, tmp_path / "weights.safetensors")
    for came, found in zip(attentions(saved), attentions(model), strict=True):
        wanted = F.interpolate(came.rpb.detach()[None].float(), size=(9, 9), mode="bicubic")[0]
        assert torch.equal(found.rpb, wanted)


# --- what it computes


class Casts(TorchDispatchMode):
    """The tensors that an operation of PyTorch's casts, each as it was given and in the dtype that it came in."""

    def __init__(self) -> None:
        super().__init__()
        self.widened: list[tuple[int, ...]] = []
        self.narrowed: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        if function is torch.ops.aten._to_copy.default and out.is_floating_point() and out.dtype != args[0].dtype:
            (self.widened if out.dtype == torch.float32 else self.narrowed).append(tuple(out.shape))
        return out


@pytest.mark.parametrize(("family", "dtype"), CASES)
def test_a_model_in_halves_computes_and_learns(family: str, dtype: torch.dtype) -> None:
    model, image = model_of(family).to(dtype), torch.randn(2, 3, 48, 48, dtype=dtype)
    exact = copy.deepcopy(model).double()
    exact.set_backend("reference")
    _same(model, model(image), exact, exact(image.double()), dtype)


@pytest.mark.parametrize(("family", "dtype"), CASES)
def test_autocast_leaves_weights_and_their_gradients_in_float32(family: str, dtype: torch.dtype) -> None:
    model, image = model_of(family, drop_path_rate=0.0), torch.randn(2, 3, 48, 48)
    exact = copy.deepcopy(model).double()
    exact.set_backend("reference")
    with torch.autocast("cpu", dtype):
        out = model(image)
    assert out.dtype == dtype
    _same(model, out, exact, exact(image.double()), dtype)


def _same(model: NAModel, out: Tensor, exact: NAModel, right: Tensor, dtype: torch.dtype) -> None:
    """A model has the logits and the gradients of another one, whose numbers are exact."""
    tolerance = LAYERS * TOLERANCE[name_of(dtype)]
    assert relative_error(out, right) <= tolerance
    weight = torch.randn_like(right)
    (out * weight.to(out.dtype)).sum().backward()
    (right * weight).sum().backward()
    for (name, found), wanted in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert found.grad is not None and wanted.grad is not None
        assert found.grad.dtype == found.dtype, name
        assert relative_error(found.grad, wanted.grad) <= 4 * tolerance, name


@pytest.mark.parametrize("family", ["nat", "dinat_s"])
def test_under_autocast_no_map_is_ever_in_float32(family: str) -> None:
    model, image = model_of(family, drop_path_rate=0.2, drop_rate=0.1).train(), torch.randn(7, 3, 48, 48)
    with Casts() as forward, torch.autocast("cpu", torch.bfloat16):
        out = model(image)
    assert forward.widened == []
    assert [shape for shape in forward.narrowed if shape[0] == 7] == [(7, 3, 48, 48)]
    with Casts() as backward:
        out.sum().backward()
    assert not any(shape[0] == 7 for shape in (*backward.widened, *backward.narrowed))  # but the weights' gradients


def test_an_attention_casts_its_input_once() -> None:
    module, x = attentions(model_of())[0], torch.randn(7, 5, 5, 8)
    with Casts() as casts, torch.autocast("cpu", torch.bfloat16):
        module(x)
    assert casts.narrowed.count((7, 5, 5, 8)) == 1


@pytest.mark.parametrize("mixed", [False, True])
def test_torch_compile_traces_models_in_halves(mixed: bool) -> None:
    dtype = torch.float32 if mixed else torch.bfloat16
    model, image = model_of(depths=(1,), num_heads=(1,)).to(dtype), torch.randn(2, 3, 32, 32, dtype=dtype)
    autocast = torch.autocast("cpu", torch.bfloat16) if mixed else contextlib.nullcontext()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    found = []
    for function in (model, compiled):
        with autocast:
            out = function(image)
        found.append([out, *torch.autograd.grad(out.float().sin().sum(), list(model.parameters()))])
    for eager, traced in zip(*found, strict=True):
        assert (traced.dtype, relative_error(traced, eager) <= TOLERANCE["bfloat16"]) == (eager.dtype, True)


@pytest.mark.parametrize("mixed", [False, True])
def test_attention_maps_in_halves(mixed: bool) -> None:
    """Their scores are sums in float32, whatever is on outside; the same in halves and under autocast."""
    model, image = model_of(), torch.randn(3, 48, 48)
    right = attention_maps(copy.deepcopy(model).bfloat16().float(), image.bfloat16().float(), (5, 40))
    if not mixed:
        model, image = model.bfloat16(), image.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        maps = attention_maps(model, image, (5, 40))
    for found, wanted in zip(maps, right, strict=True):
        assert found.dtype == torch.float32
        assert relative_error(found, wanted) <= LAYERS * TOLERANCE["bfloat16"]
        assert found.sum().item() == pytest.approx(1, abs=1e-5)


def test_scores_of_attention_maps_are_not_rounded() -> None:
    module, x = attentions(small(0))[0].bfloat16(), torch.randn(1, 7, 7, 8).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        inside = attention_of_query(module, x, (3, 3))
    with torch.no_grad():
        assert torch.equal(inside, attention_of_query(module, x, (3, 3)))
