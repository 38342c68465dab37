"""CPUs (LLVM): every float32 and float64 problem, through the lanes formulation.

Which formulations and sketches there are; ``lanes.py`` schedules them. See ``docs/design/cpu.md`` for what was
measured.
"""

from __future__ import annotations

from tvm_na.problems.attention import NAProblem
from tvm_na.schedules.base import Formulations, SearchSpace
from tvm_na.schedules.cpu.lanes import SKETCHES, LanesSchedule
from tvm_na.schedules.cpu.vectors import vector_length
from tvm_na.targets.target import NATarget
from tvm_na.te.attention.lanes_tile import LanesTile, lanes_of

#: The elements between neighboring values of one head from which on values are packed: further apart than
#: this, the values of a window fall into few sets of the first cache.
PACK_VALUES_FROM = 256

# How many sizes of a tile are worth the tuner's time.
_TILES = 2


def tiles(problem: NAProblem, target: NATarget, vector: int | None = None) -> list[LanesTile]:
    """Tiles of the lanes formulation, the one expected to be the fastest first.

    Args:
        problem: The problem.
        target: The machine.
        vector: Lanes per vector, by default those of a register.
    """
    vector = vector or vector_length(problem.accum_dtype, target)
    columns = -(-problem.spatial[-1] // problem.dilation[-1])
    pack = problem.dilation[-1] * problem.heads_kv * problem.head_dim_v >= PACK_VALUES_FROM

    def cost(tile: LanesTile) -> tuple[float, int]:
        # Vector operations: products, and what loading keys and queries costs beside them.
        vectors = lanes_of(problem, tile) // tile.vector
        count = -(-columns // tile.queries)
        return count * (vectors * tile.queries + 0.5 * vectors + 0.3 * tile.queries), -tile.queries

    limit = min(columns, target.vector_registers // 2)
    return sorted((LanesTile(q, vector, pack_values=pack) for q in range(1, limit + 1)), key=cost)


class CpuLanes(SearchSpace):
    """Attention on CPUs."""

    name = "cpu-lanes"
    problems = NAProblem
    tile_types = (LanesTile,)
    schedule = LanesSchedule
    all_sketches = SKETCHES

    def serves(self, problem: NAProblem, target: NATarget) -> bool:
        """Float32 and float64 alone."""
        return target.kind == "llvm" and problem.dtype in ("float32", "float64")

    def formulations(self, problem: NAProblem, target: NATarget, batch: int | None = None) -> Formulations:
        """Some sizes of the tile, with long vectors also one of vectors half as long; values of each query's window or
        of the whole box; for the first of them, also with values packed where they are not by default, or the other
        way round.
        """
        from tvm_na.te.attention.lanes import forward

        vector = vector_length(problem.accum_dtype, target)
        chosen = tiles(problem, target)[:_TILES]
        if vector >= 16:
            chosen += tiles(problem, target, vector // 2)[:1]
        found = [LanesTile(t.queries, t.vector, exact, t.pack_values) for t in chosen for exact in (True, False)]
        first = found[0]
        found += [LanesTile(first.queries, vector, exact, not first.pack_values) for exact in (True, False)]
        return Formulations(lambda tile: forward(problem, tile, batch), found)


SPACE = CpuLanes()
