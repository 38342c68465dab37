"""What the gather formulation depends on."""

from __future__ import annotations

from dataclasses import dataclass

from tvm_na.te.common.formulation import Tile


@dataclass(frozen=True)
class GatherTile(Tile):
    """What the expression itself depends on.

    Attributes:
        parts: Parts that a dot product is cut into; divides head_dim.
        lanes: 0 where the scores of a window are kept until its output is known. Else they are computed twice, for
            the sums of the softmax and for the output, so that a window may be larger than a GPU's shared memory; keys
            are dealt out to so many lanes, each of which has a maximum and a sum of its own.
    """

    formulation = "gather"
    parts: int
    lanes: int = 0
