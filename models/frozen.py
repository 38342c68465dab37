"""Blocks whose weights a compiler freezes: both halves as one operator each, with weights packed while it compiles.

``torch.compile`` with ``torch._inductor.config.freezing`` takes parameters for constants. Then what is made of them
alone is computed once, so weights may have the layout that kernels of ours read. Where these are faster than the
library's, a block calls :mod:`tvm_na.ops.residual`; elsewhere, and whatever else watches or changes a block (training,
gradients, hooks, autocast, other modules, sizes that are not known), it is traced as it is written.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tvm_na.functional import Backend
from tvm_na.nn import NeighborhoodAttention2D, has_hooks
from tvm_na.ops import residual
from tvm_na.problems.dense import DTYPES, DenseProblem

if TYPE_CHECKING:
    from tvm_na.models.layers import NABlock

# A block's products are worth it where they take at most so much of the time of the library's.
_WORTH = 0.97


#: How the weights of a block are packed: output channels per block of its products, of qkv, proj, fc1 and fc2.
Blocks = tuple[int, int, int, int]


def run(block: NABlock, x: Tensor) -> Tensor | None:
    """What ``block`` gives for ``x`` ``[batch, height, width, channels]``, if it is frozen while this is traced.

    Its MLP is that of :mod:`tvm_na.models.layers`, as who calls this knows.
    """
    if not torch.compiler.is_dynamo_compiling() or torch.compiler.is_exporting() or torch.is_grad_enabled():
        return None
    if x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or x.ndim != 4:
        return None
    from torch.fx.experimental.symbolic_shapes import has_static_value

    if not (has_static_value(x.shape[1]) and has_static_value(x.shape[2])):
        return None
    blocks = _blocks(block, x.shape[1], x.shape[2], x.dtype)
    if blocks is None:
        return None
    return _second_half(block, _first_half(block, x, blocks), blocks)


def _first_half(block: NABlock, x: Tensor, blocks: Blocks) -> Tensor:
    attn, norm = block.attn, block.norm1
    weight, bias = _scaled(attn.proj, block.gamma1)
    weights = [residual.packed(w, blocks[0]) for w in attn.qkv.weight.chunk(3)] + [residual.packed(weight, blocks[1])]
    biases = [*((None,) * 3 if attn.qkv.bias is None else attn.qkv.bias.chunk(3)), bias]
    window = (attn.kernel_size, attn.stride, attn.dilation, attn.is_causal)
    of_norm = (norm.weight, norm.bias)
    operator = torch.ops.tvm_na.residual_attention
    out: Tensor = operator(x, *of_norm, weights, biases, attn.rpb, norm.eps, *window, attn.num_heads, attn.scale)
    return out


def _second_half(block: NABlock, x: Tensor, blocks: Blocks) -> Tensor:
    mlp, norm = block.mlp, block.norm2
    weight, bias = _scaled(mlp.fc2, block.gamma2)
    weights = [residual.packed(mlp.fc1.weight, blocks[2]), residual.packed(weight, blocks[3])]
    operator = torch.ops.tvm_na.residual_mlp
    out: Tensor = operator(x, norm.weight, norm.bias, weights, [mlp.fc1.bias, bias], norm.eps)
    return out


def _scaled(layer: nn.Linear, gamma: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer whose output a LayerScale multiplies."""
    return (layer.weight, layer.bias) if gamma is None else (layer.weight * gamma[:, None], layer.bias * gamma)


def _blocks(block: NABlock, height: int, width: int, dtype: torch.dtype) -> Blocks | None:
    """How the weights of a block on a map of this size are to be packed; None if it is to stay as it is."""
    import torch._inductor.config as inductor

    name = str(dtype).removeprefix("torch.")
    if not inductor.freezing or name not in DTYPES or not _is_plain(block, height, width):
        return None
    attn, mlp = block.attn, block.mlp
    of_layer = functools.partial(_linear, height * width, dtype=name)
    problems = (
        of_layer(attn.qkv, out=attn.embed_dim),
        of_layer(attn.proj, residual=True),
        of_layer(mlp.fc1, activation="gelu"),
        of_layer(mlp.fc2, residual=True),
    )
    return _choose(problems)


# What torch.compiler.assume_constant_result does, which would import 2 seconds of compiler to do it.
_blocks._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _is_plain(block: NABlock, height: int, width: int) -> bool:
    """Whether a block is nothing but what :mod:`tvm_na.ops.residual` computes, at this size of a map."""
    attn, mlp, norms = block.attn, block.mlp, (block.norm1, block.norm2)
    if type(attn) is not NeighborhoodAttention2D or type(mlp.act) is not nn.GELU:
        return False
    linear = (attn.qkv, attn.proj, mlp.fc1, mlp.fc2)
    sizes = zip(attn.kernel_size, attn.dilation, (height, width), strict=True)
    return (
        not any(m.training or (m is not block and has_hooks(m)) for m in block.modules())
        and attn.backend is not Backend.REFERENCE
        and mlp.act.approximate == "none"
        and all(type(layer) is nn.Linear for layer in linear)
        and all(layer.bias is not None for layer in linear[1:])
        and all(type(norm) is nn.LayerNorm and norm.bias is not None for norm in norms)
        and all(norm.normalized_shape == (attn.embed_dim,) for norm in norms)
        and all(k * d <= n for k, d, n in sizes)
    )


def _linear(tokens: int, layer: nn.Linear, out: int | None = None, **options: Any) -> DenseProblem:
    return DenseProblem.make(
        tokens, layer.in_features, out or layer.out_features, bias=layer.bias is not None, **options
    )


@functools.lru_cache(maxsize=256)
def _choose(problems: tuple[DenseProblem, ...]) -> Blocks | None:
    """How the weights of a block's products are packed; None if the library computes them faster, here and now."""
    from tvm_na.measure.linear import LIBRARY, OURS, compare_linear

    products = (problems[0],) * 3 + problems[1:]
    times = [compare_linear(problem) for problem in products]
    ours, library = (sum(found[name].median for found in times) for name in (OURS, LIBRARY))
    if ours > _WORTH * library:
        return None
    qkv, proj, fc1, fc2 = map(residual.block_of, problems)
    return qkv, proj, fc1, fc2
