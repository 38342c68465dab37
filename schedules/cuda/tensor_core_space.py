"""GPUs (CUDA) with tensor cores, in 16 bits or TF32: two-dimensional problems, through the band formulation.

Which formulations and sketches there are; ``band.py`` schedules them. See ``docs/design/cuda.md``.
"""

from __future__ import annotations

from typing import Any

from tvm_na.cuda import limits, workarounds
from tvm_na.problems.attention import TF32, NAProblem
from tvm_na.schedules.base import Formulations, SearchSpace
from tvm_na.schedules.cuda import sub_tiles
from tvm_na.schedules.cuda.band import BandSchedule
from tvm_na.schedules.cuda.band_layouts import instructions_for
from tvm_na.schedules.cuda.band_sizes import (
    AT_ONCE,
    COLUMNS_IN_TURN,
    HEADS_IN_TURN,
    SMALLEST,
    can_be_in_turn,
    keeps_scores,
    keys_of,
    least_registers,
    shared_bytes,
)
from tvm_na.targets.target import NATarget
from tvm_na.te.attention.band_axis import SIDE, BandTile, axes, is_served

_NEEDED = ",".join((workarounds.WARP_MEMORY, workarounds.COMPILER_UNROLLS, workarounds.ASYNCHRONOUS_COPIES))


def tiles(problem: NAProblem, target: NATarget) -> list[BandTile]:
    """The sub-tiles and passes that are worth trying, the one that multiplies the fewest keys first.

    One pass where a warp can keep the scores, else two; both where it just can.
    """
    found = []
    for rows in (2, 4, 1, 8):
        tile = BandTile(rows, SIDE // rows)
        passes = [1, 2] if keeps_scores(problem, tile) else [2]
        found += [BandTile(rows, SIDE // rows, n) for n in passes]
    found = [tile for tile in found if shared_bytes(SMALLEST, problem, tile) <= target.max_shared_bytes]

    def cost(tile: BandTile) -> float:
        # Products of queries by keys, once or twice, and of weights by values.
        keys = keys_of(SMALLEST, tile, *axes(problem, tile))
        return float(keys * (tile.passes * problem.head_dim + problem.head_dim_v))

    return list(sub_tiles.worth_trying(found, cost))


class CudaBand(SearchSpace):
    """Attention on GPUs with tensor cores."""

    name = "cuda-band"
    problems = NAProblem
    tile_types = (BandTile,)
    schedule = BandSchedule

    def serves(self, problem: NAProblem, target: NATarget) -> bool:
        """Two axes, no stride, 16 bits or TF32, on architectures that have the instructions."""
        return is_served(problem) and sub_tiles.are_multiplied_on(target) and bool(tiles(problem, target))

    def rank(self, problem: NAProblem, target: NATarget) -> int:
        """Behind the flash formulation where scores have to be computed twice."""
        return tiles(problem, target)[0].passes - 1

    def formulation(self, problem: NAProblem, tile: BandTile, batch: int | None = None) -> Any:
        """The PrimFunc of ``problem`` with this tile; makes TVM know the instructions."""
        from tvm_na.te.attention.band import forward

        instructions_for(problem.dtype)
        marks = {workarounds.ATTRIBUTE: _NEEDED, limits.LEAST_REGISTERS: least_registers(problem, tile)}
        return forward(problem, tile, batch).with_attrs(marks)

    def formulations(self, problem: NAProblem, target: NATarget, batch: int | None = None) -> Formulations:
        """One for each of :func:`tiles`."""
        return Formulations(lambda tile: self.formulation(problem, tile, batch), tiles(problem, target))

    def sketches(self, func: Any, target: NATarget) -> tuple[str, ...]:
        """Sub-tiles one after the other, where there are several along an axis and one pass."""
        problem, tile = NAProblem.from_json(str(func.attrs["tvm_na.problem"])), BandTile.of(func)
        assert tile is not None
        if tile.passes == 2:
            return (AT_ONCE,)
        in_turn = [COLUMNS_IN_TURN]
        if problem.dtype != TF32:  # asynchronous copies cannot round
            in_turn.append(HEADS_IN_TURN)
        return (AT_ONCE, *(sketch for sketch in in_turn if can_be_in_turn(problem, tile, target, sketch)))


SPACE = CudaBand()
