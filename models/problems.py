"""Which neighborhood attention problems a model poses at an input size."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from tvm_na.models.meta_trace import ATTENTION, visit_layers
from tvm_na.problems.attention import DTYPES, NAProblem
from tvm_na.problems.backward import BackwardProblem


def problem_of_module(module: nn.Module, shape: torch.Size | tuple[int, ...]) -> NAProblem:
    """The problem that an attention module of :mod:`tvm_na.nn` poses for an input ``[batch, *spatial, embed_dim]``.

    The padding of a map smaller than the window counts.

    Raises:
        TypeError: ``module`` is not such a module, or its parameters have a dtype that no kernel takes.
    """
    if not isinstance(module, ATTENTION):
        raise TypeError(f"module: required a neighborhood attention of tvm_na.nn, got {type(module).__name__}")
    dtype = str(module.qkv.weight.dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise TypeError(f"module: required parameters of dtype {', '.join(DTYPES)}, got {dtype}")
    windows = (k * d for k, d in zip(module.kernel_size, module.dilation, strict=True))
    return NAProblem.make(
        tuple(max(n, window) for n, window in zip(shape[1:-1], windows, strict=True)),
        module.kernel_size,
        module.num_heads,
        module.head_dim,
        stride=module.stride,
        dilation=module.dilation,
        is_causal=module.is_causal,
        dtype=dtype,
        bias=module.rpb is not None,
    )


def problems_of(model: nn.Module, input_size: int | tuple[int, int]) -> dict[NAProblem, int]:
    """The distinct problems of a model's forward pass, in order of first use, and how many layers pose each.

    Nothing is computed: a copy of the model without storage runs on the meta device. The batch does not matter.

    Args:
        model: A model of this package, or any module that takes ``[batch, channels, height, width]`` and attends
            with the modules of :mod:`tvm_na.nn`. ``channels`` is its ``in_chans``, or 3.
        input_size: Height and width of the image in pixels; an integer counts for both.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """
    found: dict[NAProblem, int] = {}

    def record(module: nn.Module, x: Tensor, out: Tensor) -> None:
        if isinstance(module, ATTENTION):
            problem = problem_of_module(module, x.shape)
            found[problem] = found.get(problem, 0) + 1

    visit_layers(model, input_size, record)
    return found


def training_problems_of(model: nn.Module, input_size: int | tuple[int, int]) -> dict[NAProblem | BackwardProblem, int]:
    """As :func:`problems_of`, of a training step: of each attention the forward pass, which gives the log-sum-exp to
    the backward pass too, and the gradients of its inputs.

    Args:
        model: As there.
        input_size: As there.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """
    found: dict[NAProblem | BackwardProblem, int] = {}
    for problem, count in problems_of(model, input_size).items():
        found[dataclasses.replace(problem, return_lse=True)] = count
        found[BackwardProblem(problem)] = count
    return found
