"""GPUs (CUDA) with tensor cores, in 16 bits: gradients of any rank and window (``te/backward/flash.py``)."""

from __future__ import annotations

import functools
from typing import Any

from tvm_na.cuda import late, workarounds
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.schedules.base import Formulations, SearchSpace
from tvm_na.schedules.cuda import sub_tiles
from tvm_na.schedules.cuda.flash import options
from tvm_na.schedules.cuda.flash_backward_sizes import COLUMNS, cycles, default_shape
from tvm_na.schedules.helpers import FuncSchedule
from tvm_na.targets.target import NATarget
from tvm_na.te.attention.flash_tile import SIDE, FlashShape, is_served
from tvm_na.te.backward.flash_tile import BackwardFlashTile


@functools.lru_cache(maxsize=64)
def tiles(problem: NAProblem, target: NATarget) -> tuple[BackwardFlashTile, ...]:
    """The sub-tiles that are worth trying, the one that is estimated the fastest first."""

    def cost(tile: BackwardFlashTile) -> float | None:
        shape = default_shape(problem, tile, target)
        return None if shape is None else cycles(problem, tile, shape, target)

    rows = (1,) if problem.rank == 1 else (1, 2, 4, 8)
    return sub_tiles.worth_trying((BackwardFlashTile(n, SIDE // n) for n in rows), cost)


class FlashBackwardSchedule(FuncSchedule):
    """Notes the sizes of both kernels at the block of a PrimFunc of :func:`tvm_na.te.backward.flash.backward`."""

    def build(self) -> None:
        """Draw each of them."""
        default = default_shape(self.problem.forward, self.tile, self.target)
        assert default is not None
        self.draw("queries", late.QUERIES, default.queries)
        self.draw("keys", late.KEYS, default.keys)

    def draw(self, who: str, part: str, default: FlashShape) -> None:
        """The sizes of the kernel whose rows these are."""
        defaults = late.annotations_of(default, part)
        for name, (said, values) in options(self.problem.forward, COLUMNS).items():
            key = late.PREFIX + part + name
            said = f"{who}: {said.replace('keys', 'others').replace('queries', 'own')}"
            value = values[0] if len(values) == 1 else self.tune.one_of(said, values, int(defaults[key]))
            self.sch.annotate(self.block("out"), key, value)


class CudaFlashBackward(SearchSpace):
    """Gradients on GPUs with tensor cores."""

    name = "cuda-flash-backward"
    problems = BackwardProblem
    tile_types = (BackwardFlashTile,)
    schedule = FlashBackwardSchedule
    all_sketches = ("queries, then keys",)

    def serves(self, problem: BackwardProblem, target: NATarget) -> bool:
        """16 bits and even head dimensions, on architectures that have the instructions; with a bias as far as a warp's
        sums for it fit shared memory, and those of all blocks of keys the scratch memory."""
        attention = problem.forward
        return is_served(attention) and sub_tiles.are_multiplied_on(target) and bool(tiles(attention, target))

    def formulation(self, problem: BackwardProblem, tile: BackwardFlashTile, batch: int | None = None) -> Any:
        """The PrimFunc of ``problem`` with this tile."""
        from tvm_na.te.backward.flash import backward

        return backward(problem, tile, batch).with_attr(workarounds.ATTRIBUTE, workarounds.COMPILER_UNROLLS)

    def formulations(self, problem: BackwardProblem, target: NATarget, batch: int | None = None) -> Formulations:
        """One for each of :func:`tiles`."""
        return Formulations(lambda tile: self.formulation(problem, tile, batch), tiles(problem.forward, target))


SPACE = CudaFlashBackward()
