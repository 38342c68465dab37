"""Search spaces: which serve a problem on a target, in order of preference.

Importing this imports no TVM.
"""

from __future__ import annotations

from tvm_na.problems.registry import Problem
from tvm_na.schedules.base import SearchSpace
from tvm_na.schedules.cpu import attention, backward, dense, unfused
from tvm_na.schedules.cuda import backward as cuda_backward
from tvm_na.schedules.cuda import flash, flash_backward, strip, tensor_core_space
from tvm_na.schedules.cuda import gather as cuda_gather
from tvm_na.schedules.cuda import unfused as cuda_unfused
from tvm_na.targets.target import NATarget

__all__ = ["SearchSpace", "spaces_for"]

# Of those for one problem on one target, the preferred first.
_SPACES: tuple[SearchSpace, ...] = (
    attention.SPACE,
    backward.SPACE,
    dense.SPACE,
    unfused.SPACE,
    strip.SPACE,
    tensor_core_space.SPACE,
    flash.SPACE,
    cuda_gather.SPACE,
    flash_backward.SPACE,
    cuda_backward.SPACE,
    cuda_unfused.SPACE,
)


def spaces_for(problem: Problem, target: NATarget) -> list[SearchSpace]:
    """The spaces that serve ``problem`` on ``target``, the preferred first; empty if none does."""
    found = [space for space in _SPACES if isinstance(problem, space.problems) and space.serves(problem, target)]
    return sorted(found, key=lambda space: space.rank(problem, target))
