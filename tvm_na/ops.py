"""The operator as PyTorch sees it: schemas, fake kernels, and the launcher of compiled kernels, on CPUs and GPUs.

TVM is not imported here; a kernel that is on disk runs without it. ``torch.ops.tvm_na.na_forward`` and
``na_forward_lse`` take any rank in their schema; :mod:`tvm_na.functional` is the front door.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from tvm_na import runtime
from tvm_na.problem import NAProblem, problem_of

_ARGUMENTS = (
    "(Tensor query, Tensor key, Tensor value, Tensor? rpb, int[] kernel_size, int[] stride, int[] dilation, "
    "bool[] is_causal, float scale)"
)
_ALIGNMENT = 64  # bytes; TVM's kernels for CPUs assume it and do not check
_MAX_ELEMENTS = 2**31 - 1  # kernels count elements in 32 bits

Launcher = Callable[..., tuple[Tensor, "Tensor | None"]]

# PyTorch has no public names for these; where one is missing, every call counts as watched.
_dispatch_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)
_function_modes = getattr(torch._C, "_len_torch_function_stack", lambda: 1)
_transforms = getattr(torch._C._functorch, "peek_interpreter_stack", lambda: 1)
_tracing = getattr(torch._C, "_get_tracing_state", lambda: 1)
_profiling = getattr(torch._C._autograd, "_profiler_enabled", lambda: True)

_library = torch.library.Library("tvm_na", "DEF")
_library.define(f"na_forward{_ARGUMENTS} -> Tensor")
_library.define(f"na_forward_lse{_ARGUMENTS} -> (Tensor, Tensor)")

# Calls that were checked before, by everything the check depends on.
_launchers: dict[tuple[Any, ...], Launcher] = {}


def any_requires_grad(*tensors: Tensor | None) -> bool:
    """Whether one of the tensors requires a gradient."""
    # On every call's path, and several times as fast as any() of a generator.
    for t in tensors:  # noqa: SIM110
        if t is not None and t.requires_grad:
            return True
    return False


def signature(query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None) -> tuple[Any, ...]:
    """All of a call's tensors that its check depends on."""
    shapes = (query.shape, key.shape, value.shape, query.dtype, key.dtype, value.dtype)
    places = (query.device, key.device, value.device, query.layout, key.layout, value.layout)
    bias = None if rpb is None else (rpb.__class__, rpb.shape, rpb.dtype, rpb.device, rpb.layout)
    return shapes, places, bias


def _outputs(problem: NAProblem, query: Tensor) -> tuple[Tensor, Tensor | None]:
    tokens = query.shape[:-1]
    if problem.head_dim_v == problem.head_dim and query.is_contiguous():
        out = torch.empty_like(query)  # the fastest way to an output
    else:
        out = torch.empty((*tokens, problem.head_dim_v), dtype=query.dtype, device=query.device)
    if not problem.return_lse:
        return out, None
    accum = torch.float64 if problem.dtype == "float64" else torch.float32
    return out, torch.empty(tokens, dtype=accum, device=query.device)


def _problem(
    query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None, window: tuple[Any, Any, Any, Any], lse: bool
) -> NAProblem:
    return problem_of(query, key, value, *window, rpb, lse, rank=query.ndim - 3)


@functools.lru_cache(maxsize=256)
def _scale_tensor(scale: float, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor([scale], dtype=dtype, device="cpu")


def _ready(tensor: Tensor, alignment: int) -> Tensor:
    """``tensor`` as a kernel can read it: no lazy negation, contiguous, aligned."""
    if tensor.is_neg() or not tensor.is_contiguous():
        tensor = tensor.resolve_neg().contiguous()
    return tensor if tensor.data_ptr() % alignment == 0 else tensor.clone(memory_format=torch.contiguous_format)


def _elements_per_sample(problem: NAProblem) -> int:
    """A bound on the elements per sample of the largest tensor of a kernel, packed copies included."""
    tokens = 1
    for size, d in zip(problem.spatial, problem.dilation, strict=True):
        tokens *= size + 2 * d * 64  # padding of dilation groups to whole vectors
    return tokens * problem.heads * max(problem.head_dim, problem.head_dim_v)


def largest_batch(problem: NAProblem) -> int:
    """The samples that a kernel for CPUs takes at once: it counts elements in 32 bits. 0 if one is too large."""
    return _MAX_ELEMENTS // _elements_per_sample(problem)


def _on_cpu(problem: NAProblem) -> runtime.Way:
    from tvm_na.build import kernel_for, target_for

    kernel = kernel_for(problem, target_for("cpu")).function
    return runtime.Way(kernel, _scale_tensor, runtime.use_threads, _ALIGNMENT, largest_batch(problem))


def _on_cuda(problem: NAProblem, index: int) -> runtime.Way:
    from tvm_na.cuda.launch import way

    return way(problem, index, _MAX_ELEMENTS)


def _make_launcher(problem: NAProblem, device: torch.device) -> Launcher:
    way = _on_cpu(problem) if device.type == "cpu" else _on_cuda(problem, device.index)
    kernel, scale_tensor, before, alignment, samples = way.kernel, way.scale, way.before, way.alignment, way.samples
    accum = torch.float64 if problem.dtype == "float64" else torch.float32
    flops = problem.useful_flops
    if samples == 0:
        raise ValueError(f"query: required fewer than 2^31 elements per sample, got {problem}")

    def launch(
        query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None, scale: float
    ) -> tuple[Tensor, Tensor | None]:
        out, lse = _outputs(problem, query)
        if query.shape[0] == 0:
            return out, lse
        batch = query.shape[0]
        if before is not None:
            before(flops * batch)
        factor = scale_tensor(scale, accum)
        constants = (factor,) if rpb is None else (factor, _ready(rpb, alignment))
        if batch <= samples:
            inputs = (_ready(query, alignment), _ready(key, alignment), _ready(value, alignment))
            kernel(*inputs, *constants, out, *(() if lse is None else (lse,)))
            return out, lse
        for first in range(0, batch, samples):
            part = slice(first, first + samples)
            part_out, part_lse = _outputs(problem, query[part])
            lse_argument = [] if part_lse is None else [part_lse]
            inputs = (_ready(query[part], alignment), _ready(key[part], alignment), _ready(value[part], alignment))
            kernel(*inputs, *constants, part_out, *lse_argument)
            out[part] = part_out
            if lse is not None and part_lse is not None:
                lse[part] = part_lse
        return out, lse

    return launch


def _run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    window: tuple[Any, Any, Any, Any],
    scale: float,
    lse: bool,
) -> tuple[Tensor, Tensor | None]:
    if torch.is_grad_enabled() and any_requires_grad(query, key, value, rpb):
        raise NotImplementedError(
            "backend='compiled' has no backward yet: required inputs without requires_grad, or torch.no_grad(); "
            "backend='reference' is differentiable"
        )
    at = _call(query, key, value, rpb, window, lse)
    launcher = _launchers.get(at)
    if launcher is None:
        launcher = _launchers[at] = _launcher_of(_problem(query, key, value, rpb, window, lse), query.device)
    return launcher(query, key, value, rpb, scale)


def _call(
    query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None, window: tuple[Any, Any, Any, Any], lse: bool
) -> tuple[Any, ...]:
    kernel_size, stride, dilation, is_causal = window
    kind = (tuple(kernel_size), tuple(stride), tuple(dilation), tuple(is_causal), lse)
    return signature(query, key, value, rpb), kind


def known_launcher(
    query: Tensor, key: Tensor, value: Tensor, rpb: Tensor | None, window: tuple[Any, Any, Any, Any], lse: bool
) -> Launcher | None:
    """What the operator calls for such tensors, if it has been called with such before: out and, with lse, lse.

    It takes query, key, value, rpb and scale, and knows neither gradients nor the modes of :func:`is_watched`.
    """
    return _launchers.get(_call(query, key, value, rpb, window, lse))


def is_watched() -> bool:
    """Whether something wants to see calls of operators: a mode, a transform, a tracer, a profiler, forward-mode AD.

    Where nothing does, the dispatcher, which takes as long as a small kernel, may be passed by.
    """
    return bool(
        _dispatch_modes()
        or _function_modes()
        or _transforms() is not None
        or _tracing() is not None
        or _profiling()
        or forward_ad._current_level >= 0
    )


def why_no_kernel(problem: NAProblem, device: torch.device) -> str | None:
    """Why there is no kernel for ``problem`` on a CUDA device, in words; None if there is one, or can be built."""
    from tvm_na.build import is_supported, target_for, unsupported

    try:
        target = target_for("cuda", device.index)
    except ValueError as error:
        return str(error)
    return None if is_supported(problem, target) else unsupported(problem, target)


def _launcher_of(problem: NAProblem, device: torch.device) -> Launcher:
    if device.type != "cpu" or problem.dtype not in ("float16", "bfloat16"):
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


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool],
    scale: float,
) -> Tensor:
    return _run(query, key, value, rpb, (kernel_size, stride, dilation, is_causal), scale, False)[0]


def _forward_lse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool],
    scale: float,
) -> tuple[Tensor, Tensor]:
    out, lse = _run(query, key, value, rpb, (kernel_size, stride, dilation, is_causal), scale, True)
    assert lse is not None
    return out, lse


for _device in ("CPU", "CUDA"):
    _library.impl("na_forward", _forward, _device)
    _library.impl("na_forward_lse", _forward_lse, _device)


@torch.library.register_fake("tvm_na::na_forward", lib=_library)
def _fake_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool],
    scale: float,
) -> Tensor:
    window = (kernel_size, stride, dilation, is_causal)
    return _outputs(_problem(query, key, value, rpb, window, False), query)[0]


@torch.library.register_fake("tvm_na::na_forward_lse", lib=_library)
def _fake_forward_lse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rpb: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool],
    scale: float,
) -> tuple[Tensor, Tensor]:
    window = (kernel_size, stride, dilation, is_causal)
    out, lse = _outputs(_problem(query, key, value, rpb, window, True), query)
    assert lse is not None
    return out, lse


na_forward = torch.ops.tvm_na.na_forward.default
na_forward_lse = torch.ops.tvm_na.na_forward_lse.default
