"""GPUs (CUDA) with tensor cores, in 16 bits: attention of any rank and window in one pass (``te/attention/flash.py``).

The expression is written when all sizes are known (``tvm_na/cuda/late.py``): scheduling is drawing them.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm_na.cuda import late, workarounds
from tvm_na.problems.attention import NAProblem
from tvm_na.schedules.base import Formulations, SearchSpace
from tvm_na.schedules.cuda import strip
from tvm_na.schedules.cuda.flash_sizes import KEYS, STAGES, TILES, WARPS, cycles, default_shape
from tvm_na.schedules.helpers import FuncSchedule
from tvm_na.targets.cuda_arch import capability_of
from tvm_na.targets.target import NATarget
from tvm_na.te.attention.flash_tile import SIDE, FlashTile, can_be_swizzled, is_served

#: Compute capability with mma.m16n8k16 for both dtypes of 16 bits, and with cp.async.
OLDEST = (8, 0)
#: Sub-tiles whose defaults take more than so many times the best one's are not worth the tuner's time.
WORTH = 1.5
_AXES = ("planes", "rows", "columns")


@functools.lru_cache(maxsize=64)
def tiles(problem: NAProblem, target: NATarget) -> tuple[FlashTile, ...]:
    """The sub-tiles that are worth trying, the one that is estimated the fastest first."""
    cost = {}
    for rows in (1, 2, 4, 8)[: 1 if problem.rank == 1 else 4]:
        tile = FlashTile(rows, SIDE // rows)
        shape = default_shape(problem, tile, target)
        if shape is not None:
            cost[tile] = cycles(problem, tile, shape, target)
    return tuple(tile for tile in sorted(cost, key=cost.__getitem__) if cost[tile] <= WORTH * min(cost.values()))


class FlashSchedule(FuncSchedule):
    """Notes the sizes at the block of a PrimFunc of :func:`tvm_na.te.attention.flash.forward`."""

    def build(self) -> None:
        """Draw each of them."""
        default = default_shape(self.problem, self.tile, self.target)
        assert default is not None
        defaults = late.annotations_of(default)
        for name, (said, values) in options(self.problem, KEYS).items():
            key = late.PREFIX + name
            value = values[0] if len(values) == 1 else self.tune.one_of(said, values, int(defaults[key]))
            self.sch.annotate(self.block("out"), key, value)


def options(problem: NAProblem, keys: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What people call each number of a shape, and its values; there is but one along axes that are lacking."""
    there = _AXES[3 - problem.rank :]
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for axis in _AXES:
        found[f"tiles.{axis}"] = (f"{axis} of sub-tiles of a warp", TILES if axis in there else (1,))
    for axis in _AXES:
        found[f"warps.{axis}"] = (f"{axis} of warps", WARPS if axis in there else (1,))
    found["keys"] = ("keys at once", keys)
    found["stages"] = ("steps in shared memory", STAGES)
    found["swizzled"] = ("permuted rows", (0, 1) if can_be_swizzled(problem) else (0,))
    found["keeps"] = ("queries in registers", (0, 1))
    return found


class CudaFlash(SearchSpace):
    """Attention on GPUs with tensor cores, in one pass."""

    name = "cuda-flash"
    problems = NAProblem
    tile_types = (FlashTile,)
    schedule = FlashSchedule
    all_sketches = ("one pass",)

    def serves(self, problem: NAProblem, target: NATarget) -> bool:
        """16 bits and even head dimensions, on architectures that have the instructions."""
        if target.kind != "cuda" or capability_of(target.arch) < OLDEST or not is_served(problem):
            return False
        return bool(tiles(problem, target))

    def rank(self, problem: NAProblem, target: NATarget) -> int:
        """Behind formulations that keep the scores of a window, where these can."""
        return int(strip.SPACE.serves(problem, target))

    def formulation(self, problem: NAProblem, tile: FlashTile, batch: int | None = None) -> Any:
        """The PrimFunc of ``problem`` with this tile."""
        from tvm_na.te.attention.flash import forward

        return forward(problem, tile, batch).with_attr(workarounds.ATTRIBUTE, workarounds.COMPILER_UNROLLS)

    def formulations(self, problem: NAProblem, target: NATarget, batch: int | None = None) -> Formulations:
        """One for each of :func:`tiles`."""
        return Formulations(lambda tile: self.formulation(problem, tile, batch), tiles(problem, target))


SPACE = CudaFlash()
