"""What the formulations of the unfused operators depend on."""

from __future__ import annotations

from dataclasses import dataclass

from tvm_na.te.common.formulation import Tile


@dataclass(frozen=True)
class UnfusedLanesTile(Tile):
    """Of scores, and of sums of values, on a CPU.

    Attributes:
        vector: Elements of the vectors in which the columns of a window are counted.
    """

    formulation = "unfused"
    vector: int


@dataclass(frozen=True)
class TransposedTile(Tile):
    """Of sums over queries, and for a bias, on a CPU.

    Attributes:
        vector: Channels of a vector; a divisor of them.
        vectors: Vectors of channels whose sums are in registers together; a divisor of those that there are.
        tokens: Queries whose sums for a bias are added up in one task.
    """

    formulation = "unfused transposed"
    vector: int = 1
    vectors: int = 1
    tokens: int = 1


@dataclass(frozen=True)
class UnfusedTile(Tile):
    """Of every operator on a GPU.

    Attributes:
        parts: Of scores: parts that a dot product is cut into, each of which a thread computes; divides the channels.
        width: Of sums over queries: channels of a thread, which it reads at once; divides the channels.
    """

    formulation = "unfused gather"
    parts: int = 1
    width: int = 1
