"""CPUs (LLVM): every problem, through the lanes formulation, and in bfloat16 with products of pairs.

Which formulations and sketches there are; ``lanes.py`` and ``dots.py`` schedule them. See ``docs/design/cpu.md`` for
what was measured.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

from tvm_na.problems.attention import DTYPES, NAProblem
from tvm_na.problems.base import HALVES
from tvm_na.problems.registry import problem_from_json
from tvm_na.schedules.base import Formulations, SearchSpace
from tvm_na.schedules.cpu.dots import DotsSchedule
from tvm_na.schedules.cpu.estimate import row_cycles
from tvm_na.schedules.cpu.lanes import SKETCHES, LanesSchedule
from tvm_na.schedules.cpu.tasks import packs_in_tasks
from tvm_na.schedules.cpu.vectors import vector_length
from tvm_na.targets.target import NATarget
from tvm_na.te.attention.lanes_tile import DotsTile, LanesTile

#: The elements between neighboring values of one head from which on values are packed: further apart than
#: this, the values of a window fall into few sets of the first cache.
PACK_VALUES_FROM = 256

# How many sizes of a tile are worth the tuner's time.
_TILES = 2


def tiles(problem: NAProblem, target: NATarget, kind: type[LanesTile] = LanesTile) -> list[LanesTile]:
    """Tiles of a formulation, the one expected to be the fastest first.

    Vectors are those of a register; where these have 16 elements and more also half as long, which are what a window
    of 7 fits into.
    """
    longest = vector_length(problem.accum_dtype, target)
    lengths = [longest, longest // 2] if longest >= 16 else [longest]
    columns = -(-problem.spatial[-1] // problem.dilation[-1])
    far = problem.dilation[-1] * problem.heads_kv * problem.head_dim_v >= PACK_VALUES_FROM
    pack = far or problem.dtype in HALVES  # packed, each is converted once
    sizes = itertools.product(range(1, min(columns, target.vector_registers // 2) + 1), lengths)

    def cost(tile: LanesTile) -> tuple[float, int]:
        return row_cycles(problem, tile, target), -tile.queries

    return sorted((kind(q, vector, pack_values=pack) for q, vector in sizes), key=cost)


def _worth_scheduling(every: list[LanesTile]) -> list[LanesTile]:
    """Of sorted tiles the first, of each length of vectors one; with values of each query's window or of the box."""
    chosen = every[:_TILES]
    chosen += [tile for tile in every if tile.vector not in {t.vector for t in chosen}][:1]
    return [replace(tile, exact_values=exact) for tile in chosen for exact in (True, False)]


class CpuLanes(SearchSpace):
    """Attention on CPUs."""

    name = "cpu-lanes"
    problems = NAProblem
    tile_types = (LanesTile, DotsTile)

    def serves(self, problem: NAProblem, target: NATarget) -> bool:
        """Every dtype of tensors."""
        return target.kind == "llvm" and problem.dtype in DTYPES

    def schedule_for(self, problem: NAProblem, tile: LanesTile) -> type[LanesSchedule]:
        """With products of pairs or without."""
        return DotsSchedule if isinstance(tile, DotsTile) else LanesSchedule

    def formulations(self, problem: NAProblem, target: NATarget, batch: int | None = None) -> Formulations:
        """Some sizes of the tile, of each length of vectors one; values of each query's window or of the whole box; for
        the first of them, also with values packed where they are not by default, or the other way round. Before these,
        where the problem is in bfloat16 and the target has products of its pairs, those with such products.
        """
        from tvm_na.te.attention import dots, lanes

        found = _worth_scheduling(tiles(problem, target))
        found += [replace(tile, pack_values=not tile.pack_values) for tile in found[:2]]
        if target.dot and problem.uses_dots:
            found = [*_worth_scheduling(tiles(problem, target, DotsTile)), *found]

        def forward(tile: LanesTile) -> Any:
            if isinstance(tile, DotsTile):
                return dots.forward(problem, tile, batch)
            return lanes.forward(problem, tile, batch, target.converts_float16)

        return Formulations(forward, found)

    def sketches(self, func: Any, target: NATarget) -> tuple[str, ...]:
        """Keys packed where they are expected to cost less first."""
        problem: Any = problem_from_json(str(func.attrs["tvm_na.problem"]))
        in_task = packs_in_tasks(problem)
        return tuple(sorted(SKETCHES, key=lambda name: ("pack in task" in name) != in_task))


SPACE = CpuLanes()
