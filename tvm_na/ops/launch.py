"""Launching compiled kernels on torch tensors: outputs, guards of what kernels assume, batches that are too large.

TVM is not imported here; a kernel that is on disk runs without it. A launcher belongs to one problem on one device,
is made at its first call, and knows neither gradients nor who watches the call.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tvm_na.jit import runtime
from tvm_na.problems.attention import NAProblem, problem_of
from tvm_na.problems.backward import BackwardProblem, backward_problem_of
from tvm_na.problems.registry import Problem

_ALIGNMENT = 64  # bytes; TVM's kernels for CPUs assume it and do not check
MAX_ELEMENTS = 2**31 - 1  # kernels count elements in 32 bits
HALVES = ("float16", "bfloat16")

#: kernel_size, stride, dilation and is_causal, one value per axis.
Window = tuple[Any, Any, Any, Any]
#: ``launcher(query, key, value, rpb, scale)`` gives out and lse, None unless the problem has it.
Launcher = Callable[..., tuple[Tensor, "Tensor | None"]]
#: ``launcher(query, key, value, rpb, scale, lse, d_out, d_lse)`` gives d_query, d_key, d_value and d_rpb, None without
#: rpb; d_lse is None unless the problem has it.
BackwardLauncher = Callable[..., tuple[Tensor, Tensor, Tensor, "Tensor | None"]]

# Calls that were checked before, by everything the check depends on.
_launchers: dict[tuple[Any, ...], Launcher] = {}
_backward_launchers: dict[tuple[Any, ...], BackwardLauncher] = {}


def signature(query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None) -> tuple[Any, ...]:
    """All of a call's tensors that its check depends on."""
    shapes = (query.shape, key.shape, value.shape, query.dtype, key.dtype, value.dtype)
    places = (query.device, key.device, value.device, query.layout, key.layout, value.layout)
    bias = None if rpb is None else (rpb.__class__, rpb.shape, rpb.dtype, rpb.device, rpb.layout)
    return shapes, places, bias


def _call(query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None, window: Window, lse: bool) -> tuple[Any, ...]:
    kernel_size, stride, dilation, is_causal = window
    kind = (tuple(kernel_size), tuple(stride), tuple(dilation), tuple(is_causal), lse)
    return signature(query, key, value, rpb), kind


def known_launcher(
    query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None, window: Window, lse: bool
) -> Launcher | None:
    """What the operator calls for such tensors, if it has been called with such before."""
    return _launchers.get(_call(query, key, value, rpb, window, lse))


def launcher_for(query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None, window: Window, lse: bool) -> Launcher:
    """The launcher of a call, which is checked unless such a one has been before.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
        NotImplementedError: there is no kernel for it.
    """
    at = _call(query, key, value, rpb, window, lse)
    launcher = _launchers.get(at)
    if launcher is None:
        problem = problem_of(query, key, value, *window, rpb, lse, rank=query.ndim - 3)
        launcher = _launchers[at] = _launcher_of(problem, query.device)
    return launcher


def backward_launcher_for(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    window: Window,
    lse: Tensor,
    d_out: Tensor,
    d_lse: Tensor | None,
) -> BackwardLauncher:
    """As :func:`launcher_for`, of a call for the gradients."""
    more = tuple((t.shape, t.dtype, t.device, t.layout) for t in (lse, d_out, d_lse) if t is not None)
    at = (_call(query, key, value, rpb, window, d_lse is not None), more)
    launcher = _backward_launchers.get(at)
    if launcher is None:
        problem = backward_problem_of(query, key, value, window, rpb, lse, d_out, d_lse)
        launcher = _backward_launchers[at] = backward_launcher_of(problem, query.device)
    return launcher


def outputs(problem: NAProblem, query: Tensor) -> tuple[Tensor, Tensor | None]:
    """Uninitialised out and lse (None unless the problem has it)."""
    tokens = query.shape[:-1]
    if problem.head_dim_v == problem.head_dim and query.is_contiguous():
        out = torch.empty_like(query)  # the fastest way to an output
    else:
        out = torch.empty((*tokens, problem.head_dim_v), dtype=query.dtype, device=query.device)
    if not problem.return_lse:
        return out, None
    if problem.dtype in HALVES:
        return out, query.new_empty(tokens, dtype=torch.float32)
    return out, query.new_empty(tokens)


def gradient_outputs(*inputs: Tensor | None) -> list[Tensor]:
    """Uninitialised contiguous gradients of the inputs that are there."""
    return [
        torch.empty_like(t) if t.is_contiguous() else torch.empty(t.shape, dtype=t.dtype, device=t.device)
        for t in inputs
        if t is not None
    ]


@functools.lru_cache(maxsize=256)
def _scale_tensor(scale: float, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor([scale], dtype=dtype, device="cpu")


def aligned(tensor: Tensor, alignment: int) -> Tensor:
    """``tensor`` as a kernel can read it: no lazy negation, contiguous, aligned."""
    if tensor.is_neg() or not tensor.is_contiguous():
        tensor = tensor.resolve_neg().contiguous()
    return tensor if tensor.data_ptr() % alignment == 0 else tensor.clone(memory_format=torch.contiguous_format)


def padded_tokens(problem: NAProblem) -> int:
    """A bound on the positions of a packed copy: dilation groups of rows have one length, those of columns vectors."""
    rows = math.prod(size + d for size, d in zip(problem.spatial[:-1], problem.dilation[:-1], strict=True))
    return rows * (problem.spatial[-1] + 2 * problem.dilation[-1] * 64)


def _elements_per_sample(problem: NAProblem) -> int:
    """A bound on the elements per sample of the largest tensor of a kernel, packed copies included."""
    return padded_tokens(problem) * problem.heads * max(problem.head_dim, problem.head_dim_v)


def _elements_of_bias(problem: NAProblem) -> int:
    """A bound on the elements of the bias as kernels for CPUs pad it, more than the map has if head_dim is small."""
    rows = math.prod(2 * k - 1 for k in problem.kernel_size[:-1])
    return problem.heads * rows * 2 * (problem.spatial[-1] + 64) if problem.bias else 0


def largest_batch(problem: NAProblem | BackwardProblem) -> int:
    """The samples that a kernel for CPUs takes at once: it counts elements in 32 bits. 0 if one is too large."""
    if isinstance(problem, BackwardProblem):  # sums of chunks have up to twice the rows, see schedules/cpu/backward.py
        return largest_batch(problem.forward) // 2
    if _elements_of_bias(problem) > MAX_ELEMENTS:
        return 0
    return MAX_ELEMENTS // _elements_per_sample(problem)


def way_on_cpu(problem: Problem, samples: int) -> runtime.Way:
    """How the kernel of ``problem``, which is built now if need be, runs on this CPU, ``samples`` at once."""
    from tvm_na.jit.build import kernel_for, target_for

    kernel = kernel_for(problem, target_for("cpu")).function
    return runtime.Way(kernel, _scale_tensor, runtime.use_threads, _ALIGNMENT, samples)


def _on_cpu(problem: NAProblem | BackwardProblem) -> runtime.Way:
    # Before a kernel is built: where it cannot count, the compiler fails in its own words, after minutes.
    return way_on_cpu(problem, _require_samples(largest_batch(problem), problem))


def _on_cuda(problem: NAProblem | BackwardProblem, index: int) -> runtime.Way:
    from tvm_na.ops import launch_cuda as launch

    return launch.way(problem, index, _require_samples(launch.largest_batch(problem, MAX_ELEMENTS), problem))


def _require_samples(samples: int, problem: NAProblem | BackwardProblem) -> int:
    """``samples``, the largest batch of a call; ValueError if not even one fits."""
    if samples == 0:
        raise ValueError(f"query: required fewer than 2^31 elements per sample, got {problem}")
    return samples


def _make_launcher(problem: NAProblem, device: torch.device) -> Launcher:
    way = _on_cpu(problem) if device.type == "cpu" else _on_cuda(problem, device.index)
    kernel, scale_tensor, before, alignment, samples = way.kernel, way.scale, way.before, way.alignment, way.samples
    accum = torch.float64 if problem.dtype == "float64" else torch.float32
    flops = problem.useful_flops

    def launch(
        query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor | None]:
        out, lse = outputs(problem, query)
        if query.shape[0] == 0:
            return out, lse
        batch = query.shape[0]
        if before is not None:
            before(flops * batch)
        factor = scale_tensor(scale, accum)
        constants = (factor,) if rpb is None else (factor, aligned(rpb, alignment))
        if batch <= samples:
            inputs = (aligned(query, alignment), aligned(key, alignment), aligned(value, alignment))
            kernel(*inputs, *constants, out, *(() if lse is None else (lse,)))
            return out, lse
        for first in range(0, batch, samples):
            part = slice(first, first + samples)
            part_out, part_lse = outputs(problem, query[part])
            lse_argument = [] if part_lse is None else [part_lse]
            inputs = (aligned(query[part], alignment), aligned(key[part], alignment), aligned(value[part], alignment))
            kernel(*inputs, *constants, part_out, *lse_argument)
            out[part] = part_out
            if lse is not None and part_lse is not None:
                lse[part] = part_lse
        return out, lse

    return launch


def _launcher_of(problem: NAProblem, device: torch.device) -> Launcher:
    if device.type == "cuda" and problem.dtype == "float32":
        from tvm_na.jit.build import target_for
        from tvm_na.ops import tf32

        target = target_for("cuda", device.index)
        return tf32.either(lambda either: _make_launcher(either, device), problem, target)
    if device.type != "cpu" or problem.dtype not in HALVES:
        return _make_launcher(problem, device)
    # Accumulation is float32 by contract, and CPUs have no faster arithmetic for halves at hand.
    in_float32 = _make_launcher(dataclasses.replace(problem, dtype="float32"), device)

    def launch(
        query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor | None]:
        inputs = [None if t is None else t.float() for t in (query, key, value, rpb)]
        out, lse = in_float32(*inputs, scale)
        return out.to(query.dtype), lse

    return launch


def _make_backward_launcher(problem: BackwardProblem, device: torch.device) -> BackwardLauncher:
    way = _on_cpu(problem) if device.type == "cpu" else _on_cuda(problem, device.index)
    kernel, scale_tensor, before, alignment, samples = way.kernel, way.scale, way.before, way.alignment, way.samples
    accum = torch.float64 if problem.dtype == "float64" else torch.float32
    flops = problem.useful_flops

    def one(rpb: Tensor | None, scale: float, tensors: list[Tensor]) -> list[Tensor]:
        """The gradients of a batch that is not too large; tensors are query, key, value, lse, d_out and maybe d_lse."""
        if before is not None:
            before(flops * tensors[0].shape[0])
        ready = [aligned(t, alignment) for t in tensors]
        factor = scale_tensor(scale, accum)
        constants = (factor,) if rpb is None else (factor, aligned(rpb, alignment))
        gradients = gradient_outputs(*tensors[:3], rpb)
        kernel(*ready[:3], *constants, *ready[3:], *gradients)
        return gradients

    def in_parts(rpb: Tensor | None, scale: float, tensors: list[Tensor]) -> list[Tensor]:
        whole = gradient_outputs(*tensors[:3], rpb)
        of_bias = None if rpb is None else torch.zeros(rpb.shape, dtype=accum, device=rpb.device)
        for first in range(0, tensors[0].shape[0], samples):
            part = slice(first, first + samples)
            found = one(rpb, scale, [t[part] for t in tensors])
            for into, gradient in zip(whole[:3], found, strict=False):
                into[part] = gradient
            if of_bias is not None:
                of_bias += found[3]
        if of_bias is not None:
            whole[3].copy_(of_bias)
        return whole

    def launch(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rpb: Tensor | None,
        scale: float,
        lse: Tensor,
        d_out: Tensor,
        d_lse: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        tensors = [query, key, value, lse, d_out] if d_lse is None else [query, key, value, lse, d_out, d_lse]
        # An empty batch is no part at all, and its d_rpb zero.
        found = (one if 0 < query.shape[0] <= samples else in_parts)(rpb, scale, tensors)
        return found[0], found[1], found[2], None if rpb is None else found[3]

    return launch


def backward_launcher_of(problem: BackwardProblem, device: torch.device) -> BackwardLauncher:
    """The launcher of the gradients of a problem on a device; its kernel is built now if need be.

    Raises:
        NotImplementedError: there is no kernel for it.
    """
    if device.type != "cpu" or problem.dtype not in HALVES:
        return _make_backward_launcher(problem, device)
    like = BackwardProblem(dataclasses.replace(problem.forward, dtype="float32"))
    in_float32 = _make_backward_launcher(like, device)
    kind = getattr(torch, problem.dtype)

    def launch(
        query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None, scale: float, lse: Tensor, *more: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        inputs = [None if t is None else t.float() for t in (query, key, value, rpb)]
        found = in_float32(*inputs, scale, lse, *[None if t is None else t.float() for t in more])
        d_query, d_key, d_value, d_rpb = (None if t is None else t.to(kind) for t in found)
        assert d_query is not None and d_key is not None and d_value is not None
        return d_query, d_key, d_value, d_rpb

    return launch
