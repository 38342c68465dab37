"""The halves of a transformer block as one operator each, with weights that were packed ahead: for inference on CPUs.

``residual_attention`` gives ``x + proj(attention(qkv(norm(x))))``, ``residual_mlp`` ``x + fc2(gelu(fc1(norm(x))))``.
Every product is a kernel of ours (:class:`tvm_na.problems.dense.DenseProblem`): GELU and residual are applied while the
sums are in registers, no intermediate leaves the cache by way of a compiler's wrapper, and PyTorch's dispatcher is
passed once for what were twelve operators. They have no derivatives. :mod:`tvm_na.models.frozen` calls them.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tvm_na.jit.remembered import Remembered
from tvm_na.ops.launch import MOST_LAUNCHERS, Launcher, launcher_for
from tvm_na.ops.register import WINDOW, library, needs_gradient
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.dense import DenseProblem

_NORM = "Tensor x, Tensor norm_weight, Tensor norm_bias"
_SCHEMAS = (
    f"residual_attention({_NORM}, Tensor[] weights, Tensor?[] biases, Tensor? rpb, float eps, {WINDOW}, int heads, "
    "float scale) -> Tensor",
    f"residual_mlp({_NORM}, Tensor[] weights, Tensor[] biases, float eps) -> Tensor",
)

# The launchers of an operator's kernels, by all that they depend on.
_launchers: Remembered[tuple[Any, ...], tuple[Launcher, ...]] = Remembered(MOST_LAUNCHERS)


def block_of(problem: DenseProblem) -> int:
    """The output channels that lie together in the packed weights of a linear layer's kernel, which is built now.

    Raises:
        As :func:`tvm_na.jit.build.kernel_for`.
    """
    from tvm_na.jit.build import kernel_for, scheduled_module
    from tvm_na.te import ENTRY
    from tvm_na.te.dense.product import DenseTile, tile_of

    kernel = kernel_for(problem)
    record = kernel.schedule.record
    if record is None or record.target != kernel.target.name:  # of another level it is taken with other vectors
        module, _ = scheduled_module(problem, kernel.target, kernel.schedule)
        return tile_of(module[ENTRY]).block
    fields = json.loads(record.formulation)
    del fields["formulation"]
    return DenseTile(**fields).block


def packed(weight: Tensor, block: int) -> Tensor:
    """A linear layer's weight ``[out, in]`` as kernels read it, ``[ceil(out / block), 1, in, block]``; zeros behind.

    What :func:`tvm_na.te.dense.product.pack_weight` gives, in operators that a compiler folds: of bfloat16 ``in`` are
    pairs.
    """
    if weight.dtype == torch.bfloat16:
        bits = F.pad(weight, (0, weight.shape[1] % 2)).contiguous().view(torch.int16).int()
        weight = (bits[:, ::2] & 0xFFFF) | (bits[:, 1::2] << 16)
    out, channels = weight.shape
    blocks = -(-out // block)
    padded = F.pad(weight, (0, 0, 0, blocks * block - out)) if out % block else weight
    return padded.reshape(blocks, block, channels).transpose(1, 2).contiguous().unsqueeze(1)


def linear_problem(tokens: int, channels: int, out: int, like: Tensor, **options: Any) -> DenseProblem:
    """A linear layer over so many tokens, in the dtype of ``like``."""
    return DenseProblem.make(tokens, channels, out, dtype=str(like.dtype).removeprefix("torch."), **options)


def _attention_launchers(
    x: Tensor, has_bias: Sequence[bool], has_rpb: bool, window: tuple[Any, ...], heads: int
) -> tuple[Launcher, ...]:
    """Those of queries (with a bias or not), keys, values, attention, and the last product."""
    spatial, channels = tuple(x.shape[1:-1]), x.shape[-1]
    tokens = math.prod(spatial)
    inner = [linear_problem(tokens, channels, channels, x, bias=bias) for bias in has_bias[:3]]
    last = linear_problem(tokens, channels, channels, x, bias=has_bias[3], residual=True)
    size, stride, dilation, causal = window
    options: dict[str, Any] = {"stride": stride, "dilation": dilation, "is_causal": causal, "bias": has_rpb}
    attention = NAProblem.make(spatial, size, heads, channels // heads, dtype=last.dtype, **options)
    return tuple(launcher_for(problem, x.device) for problem in (*inner, attention, last))


def _mlp_launchers(x: Tensor, hidden: int) -> tuple[Launcher, ...]:
    tokens, channels = math.prod(x.shape[1:-1]), x.shape[-1]
    first = linear_problem(tokens, channels, hidden, x, activation="gelu")
    last = linear_problem(tokens, hidden, channels, x, residual=True)
    return launcher_for(first, x.device), launcher_for(last, x.device)


def residual_attention(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    rpb: Tensor | None,
    eps: float,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool],
    heads: int,
    scale: float,
) -> Tensor:
    """The first half of a block.

    Args:
        x: ``[batch, *spatial, channels]``, on the CPU, in a dtype of :class:`DenseProblem`; all others in the same.
        norm_weight, norm_bias: ``[channels]``.
        weights: :func:`packed` weights of queries, keys, values and of the last product, each ``channels`` square.
        biases: ``[channels]`` each, or None.
        rpb: The relative position bias ``[heads, 2 * kernel_size - 1, ...]``, or None.
        eps: Of the norm.
        kernel_size, stride, dilation, is_causal: The window, one value per axis.
        heads: Heads of the attention.
        scale: The factor of the scores.

    Returns:
        A tensor like ``x``.
    """
    window = (tuple(kernel_size), tuple(stride), tuple(dilation), tuple(is_causal))
    has_bias = tuple([bias is not None for bias in biases])
    at = ("attention", x.shape[1:], x.dtype, has_bias, rpb is not None, window, heads)
    make = functools.partial(_attention_launchers, x, has_bias, rpb is not None, window, heads)
    *inner, attend, last = _launchers.get(at) or _launchers.or_make(at, make)
    tokens = x.flatten(1, -2).contiguous()
    normed = F.layer_norm(tokens, tokens.shape[-1:], norm_weight, norm_bias, eps)
    of_heads = (*x.shape[:-1], heads, x.shape[-1] // heads)
    projected = [
        launch((normed, weight, bias), 1.0)[0].view(of_heads)
        for launch, weight, bias in zip(inner, weights[:3], biases[:3], strict=True)
    ]
    (attended,) = attend((*projected, rpb), scale)
    return last((attended.view(tokens.shape), weights[3], biases[3], tokens), 1.0)[0].view(x.shape)


def residual_mlp(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], eps: float
) -> Tensor:
    """The second half of a block.

    Args:
        x: ``[batch, *spatial, channels]``, on the CPU, in a dtype of :class:`DenseProblem`; all others in the same.
        norm_weight, norm_bias: ``[channels]``.
        weights: :func:`packed` weights of the two linear layers.
        biases: ``[hidden]`` and ``[channels]``.
        eps: Of the norm.

    Returns:
        A tensor like ``x``.
    """
    hidden = biases[0].shape[0]
    at = ("mlp", x.shape[1:], x.dtype, hidden)
    first, last = _launchers.get(at) or _launchers.or_make(at, functools.partial(_mlp_launchers, x, hidden))
    tokens = x.flatten(1, -2).contiguous()
    normed = F.layer_norm(tokens, tokens.shape[-1:], norm_weight, norm_bias, eps)
    (activated,) = first((normed, weights[0], biases[0]), 1.0)
    return last((activated, weights[1], biases[1], tokens), 1.0)[0].view(x.shape)


def forget() -> None:
    """Find every kernel again when it is next called."""
    _launchers.clear()


def _refuse_gradients(name: str, arguments: Sequence[Any]) -> None:
    """NotImplementedError if the derivatives of an operator that has none are wanted."""
    tensors = [t for a in arguments for t in (a if isinstance(a, (list, tuple)) else (a,)) if isinstance(t, Tensor)]
    if needs_gradient(*tensors):
        raise NotImplementedError(f"tvm_na::{name}: required torch.no_grad(), or tensors that require no gradient")


def _register(schema: str, compute: Callable[..., Tensor]) -> None:
    name = schema.partition("(")[0]

    def checked(*arguments: Any) -> Tensor:
        if torch.is_grad_enabled():
            _refuse_gradients(name, arguments)
        return compute(*arguments)

    def fake(x: Tensor, *_: Any) -> Tensor:
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    library.define(schema)
    library.impl(name, checked, "CPU")
    torch.library.register_fake(f"tvm_na::{name}", fake, lib=library)


_register(_SCHEMAS[0], residual_attention)
_register(_SCHEMAS[1], residual_mlp)
