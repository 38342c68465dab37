"""The gradients of neighborhood attention in a form that a CPU with vector registers can tile.

Tiles and boxes are those of the forward pass (``lanes.py``). A tile computes its weights again,
then the gradient of its scores, of its queries, and what it adds to those of the keys and values of its box. Boxes
overlap, so these sums are no tensor expression, which says for every element where it is read; they are blocks
(``blocks.py``) that add to what earlier tiles have left. Each task, a chunk of rows of one head of keys, has sums of
its own, which are joined at the end in one order: results do not depend on who computes what, or when.
"""

from __future__ import annotations

from typing import Any

from tvm_na.problems.backward import BackwardProblem
from tvm_na.te.backward.lanes_tile import BackwardTile
from tvm_na.te.common.formulation import of_blocks


def backward(
    problem: BackwardProblem, tile: BackwardTile, batch_size: int | None = None, float16_instructions: bool = True
) -> Any:
    """The gradients of ``problem`` as an unscheduled PrimFunc.

    Arguments as in :mod:`tvm_na.te.common.operands`; the batch is symbolic unless ``batch_size`` is given.
    Halves are converted as ``halves.py`` says.
    """
    from tvm_na.te.backward.lanes_stages import Gradients

    def make() -> None:
        gradients = Gradients(problem, tile, batch_size, float16_instructions)
        gradients.pack()
        gradients.tasks()
        gradients.join()

    return of_blocks(make, problem, tile.to_json())
