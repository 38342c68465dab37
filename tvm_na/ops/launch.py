"""Launching compiled kernels on torch tensors: outputs, guards of what kernels assume, batches that are too large.

TVM is not imported here; a kernel that is on disk runs without it. A launcher belongs to one problem on one device,
and knows neither gradients nor who watches the call.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from tvm_na.jit import runtime
from tvm_na.jit.remembered import Remembered
from tvm_na.jit.runtime import LaunchSpec
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.base import Argument, Problem
from tvm_na.problems.unfused import UnfusedProblem

_ALIGNMENT = 64  # bytes; TVM's kernels for CPUs assume it and do not check

#: ``launcher(tensors, scale)`` gives the outputs of the kernel in their order. Tensors are its inputs but the scale;
#: None stands for one that the problem does not have.
Launcher = Callable[[Sequence["Tensor | None"], float], list[Tensor]]

#: Launchers that are kept for problems, and for calls, and as many that were wanted before them.
MOST_LAUNCHERS = 1024

_launchers: Remembered[tuple[Problem, torch.device], Launcher] = Remembered(MOST_LAUNCHERS)


def launcher_for(problem: Problem, device: torch.device) -> Launcher:
    """The launcher of a problem on a device, made once; its kernel is built now if need be.

    Raises:
        NotImplementedError: there is no kernel for it.
        ValueError: one sample is too large for a kernel.
    """
    return _launchers.or_make((problem, device), functools.partial(launcher_of, problem, device))


def forget() -> None:
    """Make every launcher anew when it is next wanted: with the records that count then, for one."""
    _launchers.clear()


def empty_outputs(problem: Problem, first: Tensor) -> list[Tensor]:
    """Uninitialised outputs for a call whose first tensor is ``first``."""
    batch = first.shape[0]
    return [first.new_empty(o.shape_for(batch), dtype=getattr(torch, o.dtype)) for o in problem.outputs()]


def aligned(tensor: Tensor, alignment: int) -> Tensor:
    """``tensor`` as a kernel can read it: no lazy negation, contiguous, aligned."""
    if tensor.is_neg() or not tensor.is_contiguous():
        tensor = tensor.resolve_neg().contiguous()
    return tensor if tensor.data_ptr() % alignment == 0 else tensor.clone(memory_format=torch.contiguous_format)


@functools.lru_cache(maxsize=256)
def _scale_tensor(scale: float, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor([scale], dtype=dtype, device="cpu")


def launch_spec(problem: Problem, device: torch.device) -> LaunchSpec:
    """How the kernel of ``problem``, which is built now if need be, runs on a device."""
    # Before a kernel is built: where it cannot count, the compiler fails in its own words, after minutes.
    samples = problem.largest_batch("cuda" if device.type == "cuda" else "llvm")
    if samples == 0:
        name = problem.arguments()[0].name
        raise ValueError(f"{name}: required fewer than 2^31 elements per sample, got {problem}")
    if device.type == "cuda":
        from tvm_na.ops import launch_cuda

        return launch_cuda.launch_spec(problem, device.index, samples)
    from tvm_na.jit.build import kernel_for, target_for

    kernel = kernel_for(problem, target_for("cpu")).function
    return LaunchSpec(kernel, _scale_tensor, runtime.use_threads, _ALIGNMENT, samples)


class _Plan:
    """What a launcher does for each argument of a kernel, worked out once.

    Attributes:
        scale_at: Where the scale is among the inputs; None without one.
        outputs: Of each output, the place of an input like it, or None with its shape and dtype.
        has_batch: Of each input but the scale, whether it has a batch.
    """

    def __init__(self, problem: Problem) -> None:
        arguments = problem.arguments()
        inputs = [argument for argument in arguments if argument.role == "input"]
        self.accum = getattr(torch, problem.accum_dtype)
        self.scale_at = next((i for i, argument in enumerate(arguments) if argument.role == "scale"), None)
        self.has_batch = [argument.has_batch for argument in inputs]
        self.outputs = [(_place_of_like(o, inputs), o, getattr(torch, o.dtype)) for o in problem.outputs()]

    def empty_outputs(self, ready: Sequence[Tensor]) -> list[Tensor]:
        """Uninitialised outputs for contiguous inputs."""
        first = ready[0]
        return [
            first.new_empty(output.shape_for(first.shape[0]), dtype=dtype)
            if like is None
            else torch.empty_like(ready[like])  # the fastest way to an output
            for like, output, dtype in self.outputs
        ]


def _place_of_like(output: Argument, inputs: Sequence[Argument]) -> int | None:
    for place, argument in enumerate(inputs):
        if (argument.shape, argument.dtype, argument.has_batch) == (output.shape, output.dtype, output.has_batch):
            return place
    return None


def make_launcher(problem: Problem, spec: LaunchSpec) -> Launcher:
    """The launcher of a kernel that reads and writes the dtypes of the problem."""
    plan, flops = _Plan(problem), problem.useful_flops
    kernel, scale_tensor, before = spec.kernel, spec.scale, spec.before
    alignment, samples, scale_at, accum = spec.alignment, spec.samples, plan.scale_at, plan.accum

    def one(tensors: Sequence[Tensor], scale: float) -> list[Tensor]:
        """The outputs of a batch that is not too large."""
        if before is not None:
            before(flops * tensors[0].shape[0])
        ready = [aligned(t, alignment) for t in tensors]
        outputs = plan.empty_outputs(ready)
        if scale_at is not None:
            ready.insert(scale_at, scale_tensor(scale, accum))
        kernel(*ready, *outputs)
        return outputs

    def launch(given: Sequence[Tensor | None], scale: float) -> list[Tensor]:
        tensors = [t for t in given if t is not None]
        if 0 < tensors[0].shape[0] <= samples:
            return one(tensors, scale)
        return _in_parts(one, plan, samples, tensors, scale)

    return launch


def _in_parts(
    one: Callable[[Sequence[Tensor], float], list[Tensor]],
    plan: _Plan,
    samples: int,
    tensors: Sequence[Tensor],
    scale: float,
) -> list[Tensor]:
    """The outputs of any batch, an empty one too. What has no batch adds up over the parts."""
    first = tensors[0]
    whole = [
        first.new_empty(output.shape_for(len(first)), dtype=dtype)
        if output.has_batch
        else first.new_zeros(output.shape, dtype=plan.accum)
        for _, output, dtype in plan.outputs
    ]
    for start in range(0, len(first), samples):
        part = slice(start, start + samples)
        some = [t[part] if batched else t for t, batched in zip(tensors, plan.has_batch, strict=True)]
        for into, found, (_, output, _) in zip(whole, one(some, scale), plan.outputs, strict=True):
            if output.has_batch:
                into[part] = found
            else:
                into += found
    return [into.to(dtype) for into, (_, _, dtype) in zip(whole, plan.outputs, strict=True)]


def _as_posed(problem: Problem, device: torch.device) -> Launcher:
    return make_launcher(problem, launch_spec(problem, device))


def _bias_sums_in_parts(problem: UnfusedProblem, device: torch.device) -> Launcher:
    """Sums of parts by a kernel, then of these by PyTorch: both in one order, so that runs are equal to the bit.

    Parts are PyTorch's memory. A kernel that had its own would allocate it, which no CUDA graph can capture.
    """
    of_parts = dataclasses.replace(problem, kind="bias_parts")
    spec = launch_spec(of_parts, device)
    launch_parts = make_launcher(of_parts, spec)

    def launch(tensors: Sequence[Tensor | None], scale: float) -> list[Tensor]:
        attn = cast(Tensor, tensors[0])
        total = attn.new_zeros(problem.forward.bias_shape, dtype=getattr(torch, problem.accum_dtype))
        for start in range(0, len(attn), spec.samples):
            (parts,) = launch_parts([attn[start : start + spec.samples]], scale)
            total += parts.sum((0, 1))
        return [total.to(attn.dtype)]

    return launch


def launcher_of(problem: Problem, device: torch.device) -> Launcher:
    """A new launcher, as :func:`launcher_for` keeps it."""
    if device.type == "cpu":
        return _as_posed(problem, device)
    if device.type != "cuda":
        raise NotImplementedError(f"no kernel for {problem}: there are none for the device {device.type} yet")
    if isinstance(problem, UnfusedProblem) and problem.kind == "bias_sums":
        return _bias_sums_in_parts(problem, device)
    if isinstance(problem, NAProblem) and problem.dtype == "float32":
        from tvm_na.jit.build import target_for
        from tvm_na.ops import tf32

        return tf32.either(lambda one: _as_posed(one, device), problem, target_for("cuda", device.index))
    return _as_posed(problem, device)
