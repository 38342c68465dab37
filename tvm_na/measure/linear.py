"""A linear layer by a kernel of ours against the library's: one way of timing for whoever chooses between them.

What PyTorch's compilers call for a linear layer whose weights are constants differs: ``torch.compile`` calls MKL
(:func:`by_mkl`), AOTInductor oneDNN (:func:`by_onednn`), each with weights that it packed ahead.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tvm_na.measure.timing import Timing, measure
from tvm_na.ops.launch import launcher_for
from tvm_na.ops.residual import block_of, packed
from tvm_na.problems.dense import DenseProblem
from tvm_na.reference.case import draw

OURS, LIBRARY = "ours", "library"
#: How both are timed, in turns; seconds.
ROUNDS, SAMPLE_TIME, WARMUP_TIME = 11, 3e-3, 1e-2


@dataclass(frozen=True)
class Layer:
    """A linear layer with random numbers.

    Attributes:
        x: ``[batch, tokens, in]``.
        weight: ``[out, in]``, in the problem's dtype or narrower.
        bias: ``[out]``, or None.
        residual: ``[batch, tokens, out]``, or None.
        weight_scale: ``[out]``, what a narrower weight is to be multiplied by, or None.
    """

    problem: DenseProblem
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    residual: Tensor | None
    weight_scale: Tensor | None = None

    @classmethod
    def drawn(cls, problem: DenseProblem, batch: int) -> Layer:
        """On the CPU, in the problem's dtype."""
        inputs = [a for a in problem.arguments() if a.role == "input"]
        tensors = draw(inputs, batch, "cpu", torch.Generator().manual_seed(0))
        of = dict(zip((a.name for a in inputs), tensors, strict=True))
        weight, others = of["weight"].squeeze(1), (of.get(name) for name in ("bias", "residual", "weight_scale"))
        return cls(problem, of["x"], weight, *others)

    def widened(self) -> Tensor:
        """The product with a narrower weight, made as wide as the input at every call.

        ATen's ``_weight_int8pack_mm`` is for bfloat16 (in float32 it took 40 times as long), and Inductor's patterns
        take that alone.
        """
        wide = self.weight.to(self.x.dtype)
        wide = wide if self.weight_scale is None else wide * self.weight_scale[:, None]
        return F.linear(self.x.flatten(0, -2), wide, self.bias)

    def finished(self, product: Tensor) -> Tensor:
        """The activation of a product with its bias, and the residual."""
        product = F.gelu(product) if self.problem.activation == "gelu" else product
        return product if self.residual is None else product + self.residual.view_as(product)


#: From a layer to a call that computes all of it.
Maker = Callable[[Layer], Callable[[], Tensor]]


def launched(layer: Layer) -> Callable[[], Tensor]:
    """By our kernel, as operators launch it."""
    launch, weight = launcher_for(layer.problem, layer.x.device), packed(layer.weight, block_of(layer.problem))
    return lambda: launch((layer.x, weight, layer.bias, layer.residual), 1.0)[0]


def by_mkl(layer: Layer) -> Callable[[], Tensor]:
    """As ``torch.compile`` does, by MKL, bfloat16 by oneDNN; by whatever PyTorch has where that is not there."""
    if layer.x.dtype != torch.float32 and packs_for_onednn(layer.x.dtype):
        return by_onednn(layer)
    if layer.x.dtype != torch.float32 or not torch.backends.mkl.is_available():
        return lambda: layer.finished(F.linear(layer.x, layer.weight, layer.bias))
    rows, mkl = math.prod(layer.x.shape[:-1]), torch.ops.mkl
    weight = mkl._mkl_reorder_linear_weight(layer.weight, rows)
    return lambda: layer.finished(mkl._mkl_linear(layer.x, weight, layer.weight, layer.bias, rows))


def by_onednn(layer: Layer) -> Callable[[], Tensor]:
    """As AOTInductor does, by oneDNN, which finishes it; by whatever PyTorch has where that is not there."""
    if layer.weight.dtype != layer.x.dtype:
        return lambda: layer.finished(layer.widened())
    if not packs_for_onednn(layer.x.dtype):
        return by_mkl(layer)
    onednn, rows, activation = torch.ops.mkldnn, layer.x.flatten(0, -2), layer.problem.activation
    addend = None if layer.residual is None else layer.residual.flatten(0, -2)
    weight = onednn._reorder_linear_weight(layer.weight, len(rows))
    algorithm = "none" if activation == "gelu" else ""

    def call() -> Tensor:
        if addend is not None and activation == "none":
            return onednn._linear_pointwise.binary(rows, addend, weight, layer.bias, "add")
        out = onednn._linear_pointwise(rows, weight, layer.bias, activation, [], algorithm)
        return out if addend is None else out + addend

    return call


def packs_for_onednn(dtype: torch.dtype) -> bool:
    """Whether AOTInductor has oneDNN compute linear layers, with weights that it laid out ahead."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()):
        return False
    # Of bfloat16 where the CPU has AVX-512 at least; elsewhere oneDNN refuses it.
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def compare_linear(
    problem: DenseProblem, ours: Maker = launched, library: Maker = by_mkl, batch: int = 1
) -> dict[str, Timing]:
    """Seconds of a call for so many samples, in turns: :data:`OURS` and :data:`LIBRARY`, each the whole layer.

    Args:
        problem: A linear layer, for the CPU.
        ours, library: How either computes it.
        batch: Samples.

    Raises:
        NotImplementedError, RuntimeError: as :func:`tvm_na.jit.build.kernel_for`.
    """
    with torch.no_grad():
        layer = Layer.drawn(problem, batch)
        candidates = {OURS: ours(layer), LIBRARY: library(layer)}
        return measure(candidates, rounds=ROUNDS, sample_time=SAMPLE_TIME, warmup_time=WARMUP_TIME)
