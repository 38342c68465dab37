"""natten.attention, on tensors and on packed sequences, against the formula in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import TOLERANCE
from tests.helpers import assert_says, bad, relative_error
from tests.ops.gradients import assert_close
from tvm_na.compat import natten
from tvm_na.compat.natten.utils.varlen import generate_varlen_parameters


def formula(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False, scale: float | None = None) -> Any:
    """Output and log-sum-exp, a query at a time and a head at a time, in float64."""
    outs, sums = [], []
    for h in range(q.shape[2]):
        kv = h * k.shape[2] // q.shape[2]
        scores = q[:, :, h].double() @ k[:, :, kv].double().transpose(1, 2) * (scale or q.shape[-1] ** -0.5)
        if is_causal:
            later = torch.arange(k.shape[1]) > torch.arange(q.shape[1])[:, None]
            scores = scores.masked_fill(later, -math.inf)
        outs.append(scores.softmax(-1) @ v[:, :, kv].double())
        sums.append(scores.logsumexp(-1))
    return torch.stack(outs, dim=2), torch.stack(sums, dim=2)


def draw(tokens: int = 7, tokens_kv: int = 9, heads_kv: int = 2, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    shapes = ((tokens, 4, 8), (tokens_kv, heads_kv, 8), (tokens_kv, heads_kv, 6))
    return [torch.randn(2, *shape, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("heads_kv", [1, 2, 4])
@pytest.mark.parametrize("tokens", [(7, 9), (9, 7)])
def test_output_sum_and_gradients(tokens: tuple[int, int], heads_kv: int, is_causal: bool) -> None:
    inputs = draw(*tokens, heads_kv)
    wanted, wanted_lse = formula(*inputs, is_causal=is_causal, scale=0.3)
    plain = natten.attention(*inputs, is_causal=is_causal, scale=0.3)
    out, lse = natten.attention(*inputs, is_causal, 0.3, return_lse=True)
    weights, lse_weights = torch.randn_like(wanted), torch.randn_like(wanted_lse)

    def gradients(*results: Tensor) -> Any:
        return torch.autograd.grad(results, inputs, [weights, lse_weights][: len(results)], retain_graph=True)

    right = gradients(wanted, wanted_lse)
    assert_close([plain, out, lse, *gradients(out, lse)], [wanted, wanted, wanted_lse, *right])
    assert_close(gradients(plain), gradients(wanted))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(dtype: torch.dtype) -> None:
    inputs = draw(dtype=dtype)
    wanted, wanted_lse = formula(*inputs)
    out, lse = natten.attention(*inputs, return_lse=True)
    budget = TOLERANCE[str(dtype).removeprefix("torch.")]
    assert out.dtype == dtype and lse.dtype == torch.float32
    assert relative_error(out, wanted) <= budget and relative_error(lse, wanted_lse) <= TOLERANCE["float32"]
    assert relative_error(natten.attention(*inputs), wanted) <= budget


def test_autocast_takes_its_dtype() -> None:
    inputs = draw(dtype=torch.float32)
    rounded = [t.bfloat16() for t in inputs]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, lse = natten.attention(*inputs, return_lse=True)
    assert torch.equal(out, natten.attention(*rounded, return_lse=True)[0]) and lse.dtype == torch.float32


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("by", ["lengths", "sums"])
def test_packed_sequences_do_not_see_each_other(by: str, is_causal: bool) -> None:
    lengths = torch.tensor([[3, 0, 5, 1], [4, 2, 0, 6]], dtype=torch.int32)
    query, key, value = (t[:1] for t in draw(9, 12))
    named: dict[str, Any] = {"seqlens_Q": lengths[0], "seqlens_KV": lengths[1]}
    if by == "sums":
        sums = generate_varlen_parameters(query, key, value, lengths[0], lengths[1])
        assert sums[0].tolist() == [0, 3, 3, 8, 9] and sums[0].dtype == torch.int32 and sums[2:] == (5, 6)
        names = ("cumulative_seqlen_Q", "cumulative_seqlen_KV", "max_seqlen_Q", "max_seqlen_KV")
        named = dict(zip(names, sums, strict=True))
    out, lse = natten.attention(query, key, value, is_causal=is_causal, return_lse=True, **named)
    plain = natten.attention(query, key, value, is_causal=is_causal, **named)
    assert relative_error(plain, out) <= 1e-13
    parts = ((t.split(n.tolist(), dim=1)) for t, n in ((query, lengths[0]), (key, lengths[1]), (value, lengths[1])))
    at = 0
    for q, k, v in zip(*parts, strict=True):
        mine = slice(at, at + q.shape[1])
        at += q.shape[1]
        if not k.shape[1]:
            assert (out[:, mine] == 0).all() and (lse[:, mine] == -math.inf).all()
        elif q.shape[1]:
            assert_close([out[:, mine], lse[:, mine]], formula(q, k, v, is_causal))
    assert torch.isfinite(torch.autograd.grad(plain.sum(), query)[0]).all()


def test_positional_arguments_of_0_20_and_hints() -> None:
    inputs = draw()
    wanted, _ = formula(*inputs, scale=0.3)
    for args, named in (
        ((0.3,), {}),
        ((0.3, "cutlass-fmha", 64, 64), {}),
        ((None, "flex-fmha"), {"return_lse": True}),
        ((False, 0.3), {"backend": "blackwell-fmha", "q_tile_size": 64}),
        ((), {"scale": 0.3, "backend": "reference", "torch_compile": True}),
    ):
        out = natten.attention(*inputs, *args, **named)
        right = formula(*inputs)[0] if args[:1] == (None,) else wanted
        assert relative_error(out[0] if isinstance(out, tuple) else out, right) <= 1e-13


def test_there_is_no_kernel_for_it() -> None:
    with pytest.raises(NotImplementedError, match="backend='compiled'"):
        natten.attention(*draw(), backend="compiled")


LENGTHS = torch.tensor([0, 3, 7])


@pytest.mark.parametrize(
    ("argument", "named", "error", "says"),
    [
        bad("query", torch.zeros(2, 7, 8), ValueError, "4 dimensions", name="3d"),
        bad("query", torch.zeros(2, 7, 3, 8), ValueError, "multiple of key's 2 heads, got 3", name="3-heads"),
        bad("key", torch.zeros(1, 9, 2, 8), ValueError, "(2, 9, 2, 8)", "(1, 9, 2, 8)", name="batch"),
        bad("value", torch.zeros(2, 9, 2, 6).half(), TypeError, "float16", name="half"),
        bad("is_causal", "yes", TypeError, "bool", "'yes'"),
        bad("return_lse", 1, TypeError, "bool", "1"),
        bad("scale", math.inf, ValueError, "finite"),
        bad("backend", "cutlass-fna", ValueError, "cutlass-fmha", "'cutlass-fna'"),
        bad("seqlens_Q", None, ValueError, "counterpart", seqlens_KV=torch.tensor([7])),
        bad("seqlens_Q", torch.tensor([7.0]), TypeError, "float32", seqlens_KV=torch.tensor([9]), name="float"),
        bad("cumulative_seqlen_KV", None, ValueError, "counterpart", cumulative_seqlen_Q=LENGTHS),
    ],
)
def test_bad_arguments(argument: str, named: dict[str, Any], error: type[Exception], says: Any) -> None:
    q, k, v = torch.zeros(2, 7, 4, 8), torch.zeros(2, 9, 2, 8), torch.zeros(2, 9, 2, 6)
    if "seqlen" in argument:
        q, k, v = q[:1], k[:1], v[:1]
    with pytest.raises((TypeError, ValueError)) as caught:
        natten.attention(**{"query": q, "key": k, "value": v, **named})
    assert_says(caught, argument, error, says)


def test_sums_of_lengths_that_do_not_fit_are_refused() -> None:
    q = torch.zeros(1, 7, 4, 8)
    for argument, named in (
        ("cumulative_seqlen_Q", {"cumulative_seqlen_Q": torch.tensor([0, 3, 6]), "cumulative_seqlen_KV": LENGTHS}),
        ("cumulative_seqlen_Q", {"cumulative_seqlen_Q": torch.tensor([1, 3, 7]), "cumulative_seqlen_KV": LENGTHS}),
        ("cumulative_seqlen_KV", {"cumulative_seqlen_Q": LENGTHS, "cumulative_seqlen_KV": torch.tensor([0, 9, 7])}),
        ("cumulative_seqlen_KV", {"cumulative_seqlen_Q": LENGTHS, "cumulative_seqlen_KV": torch.tensor([0, 7])}),
        ("max_seqlen_Q", {"cumulative_seqlen_Q": LENGTHS, "cumulative_seqlen_KV": LENGTHS, "max_seqlen_Q": 3}),
    ):
        with pytest.raises(ValueError, match=f"^{argument}: required "):
            natten.attention(q, q, q, **named)
    two = torch.zeros(2, 7, 4, 8)
    with pytest.raises(ValueError, match="query: required a batch of one for packed sequences, got 2"):
        natten.attention(two, two, two, cumulative_seqlen_Q=LENGTHS, cumulative_seqlen_KV=LENGTHS)
