"""How kernels run on GPUs: the right device, the scale where the GPU can read it, the batch that fits into a call.

Streams need nothing: tvm_ffi asks PyTorch for the current stream of the first CUDA tensor of a call (its function.pxi,
``TVMFFIPyArgSetterDLPackExchangeAPI_``: ``current_work_stream``), and TVM's CUDA runtime launches there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tvm_na.jit.runtime import LaunchSpec
from tvm_na.jit.scratch import with_scratch
from tvm_na.problems.base import Problem

#: Bytes. The widest load of a thread, and what PyTorch's allocator gives at least.
ALIGNMENT = 16

# Kept for good, since CUDA graphs that were captured with one read it when they are replayed.
_scales: dict[tuple[int, float, torch.dtype], Tensor] = {}
_MOST_SCALES = 1024


def launch_spec(problem: Problem, index: int, samples: int) -> LaunchSpec:
    """How the kernel of ``problem``, built now if need be, runs on a CUDA device.

    Args:
        problem: What it computes.
        index: The device.
        samples: The largest batch of one call.
    """
    kernel = on_device(with_scratch(_kernel(problem, index), problem), index)
    return LaunchSpec(kernel, functools.partial(scale_tensor, index), None, ALIGNMENT, samples)


def _kernel(problem: Problem, index: int) -> Callable[..., None]:
    from tvm_na.jit.build import is_cached, kernel_for, target_for

    target = target_for("cuda", index)
    if is_cached(problem, target):
        return kernel_for(problem, target).function
    from tvm_na.jit.progress import building

    with building(problem, target):
        return kernel_for(problem, target).function


def on_device(function: Callable[..., None], index: int) -> Callable[..., None]:
    """``function``, which makes device ``index`` the current one, with the current one restored afterwards."""

    def launch(*args: Any) -> None:
        if torch.cuda.current_device() == index:
            function(*args)
            return
        with torch.cuda.device(index):
            function(*args)

    return launch


def scale_tensor(index: int, scale: float, dtype: torch.dtype) -> Tensor:
    """``scale`` as a tensor ``[1]`` on the CUDA device ``index``, made without a copy from the host."""
    found = _scales.get((index, scale, dtype))
    return _new_scale(index, scale, dtype) if found is None else found


def _new_scale(index: int, scale: float, dtype: torch.dtype) -> Tensor:
    device = torch.device("cuda", index)
    with torch.inference_mode(False), torch.cuda.device(device):
        made = torch.full((1,), scale, dtype=dtype, device=device)
        # What is filled while a graph is captured is filled when the graph is replayed, and belongs to it.
        if len(_scales) < _MOST_SCALES and not torch.cuda.is_current_stream_capturing():
            torch.cuda.current_stream().synchronize()  # once: calls on other streams must not read it before
            _scales[index, scale, dtype] = made
    return made
