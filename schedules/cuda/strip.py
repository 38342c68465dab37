"""GPUs (CUDA) with tensor cores, in 16 bits: small windows, along strips of a map (``te/attention/strip.py``).

The expression is written when all sizes are known (``tvm_na/cuda/late.py``): scheduling is drawing them.
"""

from __future__ import annotations

import functools
from dataclasses import asdict
from typing import Any

from tvm_na.cuda import late, workarounds
from tvm_na.problems.attention import NAProblem
from tvm_na.schedules.base import Formulations, SearchSpace
from tvm_na.schedules.cuda import sub_tiles
from tvm_na.schedules.cuda.strip_sizes import cycles, default_shape, options
from tvm_na.schedules.helpers import FuncSchedule
from tvm_na.targets.target import NATarget
from tvm_na.te.attention.flash_tile import SIDE
from tvm_na.te.attention.strip_tile import StripTile, is_served

#: Sub-tiles whose defaults take more than so many times the best one's are not worth the tuner's time.
_WORTH = 1.1
_SAID = {
    "rows": "rows of warps",
    "columns": "columns of warps",
    "parts": "parts of a strip",
    "stages": "steps in memory",
}


@functools.lru_cache(maxsize=64)
def tiles(problem: NAProblem, target: NATarget) -> tuple[StripTile, ...]:
    """The sub-tiles that are worth trying, the one that is estimated the fastest first."""

    def cost(tile: StripTile) -> float | None:
        shape = default_shape(problem, tile, target)
        return None if shape is None else cycles(problem, tile, shape, target)

    return sub_tiles.worth_trying((StripTile(rows, SIDE // rows) for rows in (8, 4, 2, 1)), cost, _WORTH)


class StripSchedule(FuncSchedule):
    """Notes the sizes at the block of a PrimFunc of :func:`tvm_na.te.attention.strip.forward`."""

    def build(self) -> None:
        """Draw each of them."""
        default = default_shape(self.problem, self.tile, self.target)
        assert default is not None
        for name, values in options(self.problem, self.tile).items():
            value = values[0] if len(values) == 1 else self.tune.one_of(_SAID[name], values, asdict(default)[name])
            self.sch.annotate(self.block("out"), late.STRIP_PREFIX + name, value)


class CudaStrip(SearchSpace):
    """Attention on GPUs with tensor cores, along strips."""

    name = "cuda-strip"
    problems = NAProblem
    tile_types = (StripTile,)
    schedule = StripSchedule
    all_sketches = ("along strips",)

    def serves(self, problem: NAProblem, target: NATarget) -> bool:
        """Two axes, 16 bits, no stride, scores that fit registers, on architectures that have the instructions."""
        return is_served(problem) and sub_tiles.are_multiplied_on(target) and bool(tiles(problem, target))

    def formulation(self, problem: NAProblem, tile: StripTile, batch: int | None = None) -> Any:
        """The PrimFunc of ``problem`` with this tile."""
        from tvm_na.te.attention.strip import forward

        return forward(problem, tile, batch).with_attr(workarounds.ATTRIBUTE, workarounds.COMPILER_UNROLLS)

    def formulations(self, problem: NAProblem, target: NATarget, batch: int | None = None) -> Formulations:
        """One for each of :func:`tiles`."""
        return Formulations(lambda tile: self.formulation(problem, tile, batch), tiles(problem, target))


SPACE = CudaStrip()
