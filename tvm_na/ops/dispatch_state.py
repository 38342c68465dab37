"""What wants to see the calls of an operator, and which derivatives they need."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

# PyTorch has no public names for these; where one is missing, every call counts as watched.
_dispatch_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)
_function_modes = getattr(torch._C, "_len_torch_function_stack", lambda: 1)
_transforms = getattr(torch._C._functorch, "peek_interpreter_stack", lambda: 1)
_tracing = getattr(torch._C, "_get_tracing_state", lambda: 1)
_profiling = getattr(torch._C._autograd, "_profiler_enabled", lambda: True)


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


def any_requires_grad(*tensors: Tensor | None) -> bool:
    """Whether one of the tensors requires a gradient."""
    # On every call's path, and several times as fast as any() of a generator.
    for t in tensors:  # noqa: SIM110
        if t is not None and t.requires_grad:
            return True
    return False


def any_tangent(*tensors: Tensor | None) -> bool:
    """Whether one of the tensors has a tangent: a derivative in forward mode goes through the call."""
    if forward_ad._current_level < 0:
        return False
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def in_forward_mode(*tensors: Tensor | None) -> bool:
    """Whether a tensor has a tangent, or may have one that ``torch.func`` hides in its wrappers, or a compiler."""
    if forward_ad._current_level < 0:
        return False
    if torch.compiler.is_compiling():
        return True
    if _transforms() is not None:
        jvp = torch._C._functorch.TransformType.Jvp
        if any(level.key() == jvp for level in torch._C._functorch.get_interpreter_stack() or ()):
            return True
    return any_tangent(*tensors)
