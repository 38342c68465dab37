"""Launching the kernels of the unfused operators on torch tensors, with the guards of :mod:`tvm_na.ops.launch`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from tvm_na.jit.runtime import Way
from tvm_na.ops import launch as launchers
from tvm_na.problems.unfused import (
    UnfusedProblem,
    Window,
    av_problem_of,
    bias_problem_of,
    qk_problem_of,
    transposed_problem_of,
)

__all__ = ["Launcher", "Window", "known_launcher", "launcher_for", "output", "problem_for", "signature"]


#: ``launcher(*tensors, scale)``, with the operator's tensors, None for a bias that is not there; no scale for sums of
#: a bias.
Launcher = Callable[..., Tensor]

# Calls that were checked before, by everything the check depends on.
_launchers: dict[tuple[Any, ...], Launcher] = {}


def signature(*tensors: Tensor | None) -> tuple[Any, ...]:
    """All of a call's tensors that its check depends on."""
    return tuple(None if t is None else (t.shape, t.dtype, t.device, t.layout) for t in tensors)


def _call(name: str, tensors: tuple[Tensor | None, ...], window: Window, option: int) -> tuple[Any, ...]:
    return name, signature(*tensors), *map(tuple, window), option


def known_launcher(name: str, *tensors: Tensor | None, window: Window, option: int = 0) -> Launcher | None:
    """What the operator ``name`` calls for such tensors, if it has been called with such before."""
    return _launchers.get(_call(name, tensors, window, option))


def problem_for(name: str, *tensors: Tensor | None, window: Window, option: int = 0) -> UnfusedProblem:
    """The problem that a call of an operator poses.

    Args:
        name: ``na_qk``, ``na_av``, ``na_av_transposed`` or ``na_bias_sums``.
        tensors: The operator's.
        window: kernel_size, stride, dilation and is_causal, one value per axis.
        option: Of na_qk, whether scores without a key are 0; of na_av_transposed, the heads of keys.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """
    first, *rest = tensors
    assert first is not None
    rank = first.ndim - 3
    if name == "na_bias_sums":
        return bias_problem_of(first, window, rank)
    second = rest[0]
    assert second is not None
    if name == "na_qk":
        return qk_problem_of(first, second, window, rest[1], rank, bool(option))
    if name == "na_av":
        return av_problem_of(first, second, window, rank)
    return transposed_problem_of(first, second, option, window, rank)


def launcher_for(name: str, *tensors: Tensor | None, window: Window, option: int = 0) -> Launcher:
    """The launcher of a call, which is checked unless such a one has been before; arguments as of :func:`problem_for`.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
        NotImplementedError: there is no kernel for it.
    """
    at = _call(name, tensors, window, option)
    launcher = _launchers.get(at)
    if launcher is None:
        problem = problem_for(name, *tensors, window=window, option=option)
        assert tensors[0] is not None
        launcher = _launchers[at] = _launcher_of(problem, tensors[0].device)
    return launcher


def output(problem: UnfusedProblem, first: Tensor) -> Tensor:
    """An uninitialised result for the first tensor of a call."""
    p = problem.forward
    if problem.kind == "bias_sums":
        shape: tuple[Any, ...] = p.bias_shape
    elif problem.kind == "av_transposed":
        shape = (*first.shape[:-2], p.heads_kv, problem.channels)
    else:
        shape = (*first.shape[:-1], problem.channels if problem.kind == "av" else problem.window)
    return torch.empty(shape, dtype=first.dtype, device=first.device)


def _elements_per_sample(problem: UnfusedProblem) -> int:
    """A bound on the elements per sample of the largest tensor of a kernel: scores, or packed keys."""
    p = problem.forward
    return max(math.prod(p.spatial) * p.heads * problem.window, launchers.padded_tokens(p) * p.heads * problem.channels)


def largest_batch(problem: UnfusedProblem) -> int:
    """The samples that a kernel for CPUs takes at once: it counts elements in 32 bits. 0 if one is too large."""
    if math.prod(problem.forward.bias_shape) > launchers.MAX_ELEMENTS:
        return 0
    return launchers.MAX_ELEMENTS // _elements_per_sample(problem)


def largest_batch_on_gpu(problem: UnfusedProblem) -> int:
    """The same of a kernel for GPUs, which packs nothing, but whose last threads count beyond the end of tensors."""
    if math.prod(problem.forward.bias_shape) > launchers.MAX_ELEMENTS:
        return 0
    of_sample = [count for name, count in problem.elements.items() if name not in ("rpb", "d_rpb")]
    return launchers.MAX_ELEMENTS // (2 * max(of_sample))


def _require_samples(samples: int, problem: UnfusedProblem) -> int:
    """``samples``, the largest batch of a call; ValueError if not even one fits."""
    if samples == 0:
        first = "query" if problem.kind in ("qk", "dots") else "attn"
        raise ValueError(f"{first}: required fewer than 2^31 elements per sample, got {problem}")
    return samples


def _way(problem: UnfusedProblem, device: torch.device) -> Way:
    """How the kernel of ``problem``, which is built now if need be, runs on a device."""
    # Before a kernel is built: where it cannot count, the compiler fails in its own words.
    if device.type == "cpu":
        return launchers.way_on_cpu(problem, _require_samples(largest_batch(problem), problem))
    from tvm_na.ops import launch_cuda as launch

    samples = _require_samples(largest_batch_on_gpu(problem), problem)
    return launch.way(cast(Any, problem), device.index, samples)  # for which all problems are alike


def _make_launcher(problem: UnfusedProblem, device: torch.device) -> Launcher:
    way = _way(problem, device)
    kernel, scale_tensor, before, alignment, samples = way.kernel, way.scale, way.before, way.alignment, way.samples
    accum = torch.float64 if problem.dtype == "float64" else torch.float32
    flops, adds_up = problem.useful_flops, problem.kind == "bias_sums"
    tensors = 1 if adds_up else 2

    def one(arguments: tuple[Any, ...]) -> Tensor:
        """The result of a batch that is not too large; arguments are tensors, maybe a bias, and the scale."""
        first = arguments[0]
        if before is not None:
            before(flops * first.shape[0])
        out = output(problem, first)
        ready = [launchers.aligned(t, alignment) for t in arguments[:-1] if t is not None]
        if adds_up:
            kernel(*ready, out)
        else:
            kernel(*ready[:2], scale_tensor(arguments[-1], accum), *ready[2:], out)
        return out

    def launch(*arguments: Any) -> Tensor:
        batch = arguments[0].shape[0]
        if 0 < batch <= samples:
            return one(arguments)
        whole = output(problem, arguments[0])
        if adds_up:
            whole.zero_()
        for first in range(0, batch, samples):
            part = slice(first, first + samples)
            found = one((*(t[part] for t in arguments[:tensors]), *arguments[tensors:]))
            if adds_up:
                whole += found
            else:
                whole[part] = found
        return whole

    return launch


def _bias_sums_on_gpu(problem: UnfusedProblem, device: torch.device) -> Launcher:
    """Sums of parts by a kernel, then of these by PyTorch: both in one order, so that runs are equal to the bit.

    Parts are PyTorch's memory. A kernel that had its own would allocate it, which no CUDA graph can capture.
    """
    of_parts = dataclasses.replace(problem, kind="bias_parts")
    way, accum = _way(of_parts, device), getattr(torch, problem.accum_dtype)
    shape = (problem.parts, *problem.forward.bias_shape)

    def launch(attn: Tensor, scale: float) -> Tensor:
        total = None
        for first in range(0, attn.shape[0], way.samples):
            some = launchers.aligned(attn[first : first + way.samples], way.alignment)
            parts = torch.empty((len(some), *shape), dtype=accum, device=some.device)
            way.kernel(some, parts)
            found = parts.sum((0, 1))
            total = found if total is None else total + found
        return output(problem, attn).zero_() if total is None else total.to(attn.dtype)

    return launch


def _launcher_of(problem: UnfusedProblem, device: torch.device) -> Launcher:
    if device.type == "cuda":
        return (_bias_sums_on_gpu if problem.kind == "bias_sums" else _make_launcher)(problem, device)
    if device.type != "cpu":
        raise NotImplementedError(f"no kernel for {problem}: the unfused operators have none for {device.type} yet")
    if problem.dtype not in launchers.HALVES:
        return _make_launcher(problem, device)
    # Accumulation is float32 by contract, and CPUs have no faster arithmetic for halves at hand.
    in_float32 = _make_launcher(
        dataclasses.replace(problem, forward=dataclasses.replace(problem.forward, dtype="float32")), device
    )
    kind = getattr(torch, problem.dtype)

    def launch(*arguments: Any) -> Tensor:
        return in_float32(*(t.float() if isinstance(t, Tensor) else t for t in arguments)).to(kind)

    return launch
