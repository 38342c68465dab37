"""What the gather formulation of the gradients depends on."""

from __future__ import annotations

from dataclasses import dataclass

from tvm_na.problems.attention import NAProblem
from tvm_na.te.common.formulation import Tile


@dataclass(frozen=True)
class BackwardGatherTile(Tile):
    """What the expression itself depends on.

    Attributes:
        lanes: Threads of a group, a power of two up to 32; the schedule must bind them to ``threadIdx.x``.
        rows, columns: With a bias, the keys of a block, whose sums for the bias are in its shared memory; or 0 where
            those have a kernel of their own, which computes weights again.
    """

    formulation = "backward gather"
    lanes: int
    rows: int = 0
    columns: int = 0


def chunks_of(problem: NAProblem, rows: int, columns: int) -> tuple[int, ...]:
    """Into how many chunks of so many rows and columns each axis is cut."""
    *outer, width = problem.spatial
    if outer:
        outer[-1] = -(-outer[-1] // rows)
    return (*outer, -(-width // columns))
