"""The gradients of neighborhood attention for tensor cores: windows of any size, ranks 1 to 3, every option.

Two kernels go through windows as that of the attention does (:mod:`tvm_na.te.attention.flash`), without atomics:

- *Queries*: a block of queries goes through its keys twice. First it finds what weights are relative to, the inverse of
  their sum and what is subtracted from their gradients (the *statistics*), then ``d_query``.
- *Keys*: a block of keys goes through the queries that see any of them, a box too, with their statistics, for
  ``d_key`` and ``d_value``. Rows are keys and columns queries, so that weights and gradients of scores have the layout
  of the next product's left matrix as they are.

With a bias each warp of keys adds up gradients of scores by entry; those of a block are added up at its end, and those
of all blocks by a third kernel, always in one order.
"""

from __future__ import annotations

from typing import Any

from tvm.script.ir_builder import tirx as T

from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem, most_bias_chunks
from tvm_na.te.attention.flash_tile import SIDE, is_served
from tvm_na.te.backward.flash_kernels import KeyKernel, QueryKernel, join_blocks
from tvm_na.te.backward.flash_tile import BackwardFlashShape, BackwardFlashTile, blocks_of_keys
from tvm_na.te.common.blocks import argument, whole
from tvm_na.te.common.formulation import of_blocks
from tvm_na.te.common.operands import Operands


def backward(problem: BackwardProblem, tile: BackwardFlashTile, batch: int | None = None) -> Any:
    """The PrimFunc of ``problem``, with ``batch`` samples or any number: arguments and an empty block ``out``.

    Arguments as in :mod:`tvm_na.te.common.operands`, and behind them those of
    :func:`tvm_na.problems.backward.BackwardProblem.scratch`.

    Raises:
        ValueError: for a problem that there is no such expression of, or a sub-tile of other than 16 positions.
    """
    if not is_served(problem.forward):
        raise ValueError(f"problem: required 16 bits, even head dimensions up to 256, got {problem}")
    if tile.rows * tile.columns != SIDE or (problem.rank == 1 and tile.rows > 1):
        raise ValueError(f"tile: required rows x columns = {SIDE}, one row in rank 1, got {tile}")

    def make() -> None:
        gradients = _Gradients(problem, batch)
        with T.sblock("out"):
            T.reads(*(t[whole(t)] for t in gradients.ops.inputs))
            T.writes(*(t[whole(t)] for t in (*gradients.outputs, *gradients.scratch)))
            T.evaluate(0)

    return of_blocks(make, problem, tile.to_json())


def written(problem: BackwardProblem, tile: BackwardFlashTile, shape: BackwardFlashShape, batch: int | None) -> Any:
    """The PrimFunc of :func:`backward` with its body, bound to blocks and threads.

    Raises:
        ValueError: there are more blocks of keys than there is scratch memory for.
    """
    chunks = blocks_of_keys(problem.forward, tile, shape.keys)
    if problem.forward.bias and chunks > most_bias_chunks(problem):
        raise ValueError(f"keys: required at most {most_bias_chunks(problem)} blocks of a sample, got {chunks}")
    return of_blocks(lambda: _Gradients(problem, batch).write(tile, shape, chunks), problem, tile.to_json())


class _Gradients:
    """Makes the function, inside of TVM's IRBuilder: first its arguments."""

    def __init__(self, problem: BackwardProblem, batch: int | None) -> None:
        self.problem: NAProblem = problem.forward
        self.ops = Operands.of(problem, batch, argument)
        self.outputs, self.scratch = (
            [argument(a.name, a.shape_for(self.ops.batch), a.dtype) for a in arguments]
            for arguments in (problem.outputs(), problem.scratch())
        )

    def write(self, tile: BackwardFlashTile, shape: BackwardFlashShape, chunks: int) -> None:
        """The kernels, in the order in which they are launched."""
        d_query, d_key, d_value, *d_rpb = self.outputs
        statistics, *bias_sums = self.scratch
        QueryKernel(self.problem, self.ops, [d_query, statistics], statistics).write(tile, shape.queries)
        KeyKernel(self.problem, self.ops, [d_key, d_value, *bias_sums], statistics).write(tile, shape.keys)
        if d_rpb:
            join_blocks(self.problem, self.ops.batch, chunks, bias_sums[0], d_rpb[0])
