"""GPUs (CUDA) with tensor cores, in 16 bits: attention of any rank and window in one pass (``te/attention/flash.py``).

The expression is written when all sizes are known (``tvm_na/cuda/late.py``): scheduling is drawing them.
"""

from __future__ import annotations

import functools
from typing import Any

from tvm_na.cuda import late, workarounds
from tvm_na.problems.attention import NAProblem
from tvm_na.schedules.base import Formulations, SearchSpace
from tvm_na.schedules.cuda import strip, sub_tiles
from tvm_na.schedules.cuda.flash_sizes import KEYS, STAGES, TILES, WARPS, cycles, default_shape
from tvm_na.schedules.helpers import FuncSchedule
from tvm_na.targets.target import NATarget
from tvm_na.te.attention.flash_tile import SIDE, FlashTile, can_be_swizzled, is_served

_AXES = ("planes", "rows", "columns")


@functools.lru_cache(maxsize=64)
def tiles(problem: NAProblem, target: NATarget) -> tuple[FlashTile, ...]:
    """The sub-tiles that are worth trying, the one that is estimated the fastest first."""

    def cost(tile: FlashTile) -> float | None:
        shape = default_shape(problem, tile, target)
        return None if shape is None else cycles(problem, tile, shape, target)

    rows = (1,) if problem.rank == 1 else (1, 2, 4, 8)
    return sub_tiles.worth_trying((FlashTile(n, SIDE // n) for n in rows), cost)


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
        return is_served(problem) and sub_tiles.are_multiplied_on(target) and bool(tiles(problem, target))

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
