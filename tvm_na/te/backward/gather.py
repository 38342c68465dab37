"""The gradients of neighborhood attention in a form that threads of a GPU can share: any rank, every option.

Each query goes through its own window, then each key through the queries that see it, and with it the bias, or that by
itself: each entry through the pairs that have its index. Weights are computed again each time; nothing of the size
tokens x window is kept, nothing is added up by atomics, and every sum has one order. A *group* of threads
(``threads.py``) has one query, key or entry, and each of its threads some of the channels.

With shift = sum of P * dP over the window - d_lse, which takes the whole window to know::

    d_query = scale * sum P * (dP - shift) * key = scale * (sum P * dP * key - shift * sum P * key)

so one pass over the window is enough. A score that weights are relative to, the inverse of their sum and the shift are
kept for the keys and the bias, which come after.
"""

from __future__ import annotations

from math import prod
from typing import Any

from tvm_na.problems.backward import BackwardProblem, most_bias_chunks
from tvm_na.te.backward.gather_tile import BackwardGatherTile, chunks_of
from tvm_na.te.common.formulation import of_blocks


def backward(problem: BackwardProblem, tile: BackwardGatherTile, batch_size: int | None = None) -> Any:
    """The gradients of ``problem`` as an unscheduled PrimFunc; the batch is symbolic unless ``batch_size`` is given.

    Arguments as in :mod:`tvm_na.te.common.operands`, and behind them those of
    :func:`tvm_na.problems.backward.BackwardProblem.scratch`.

    Raises:
        ValueError: ``tile.lanes`` is no power of two up to 32, or there are keys of a block without a bias, or more
            blocks than there is scratch memory for.
    """
    if tile.lanes not in (1, 2, 4, 8, 16, 32):
        raise ValueError(f"lanes: required a power of two up to 32, got {tile.lanes}")
    if tile.rows and not problem.forward.bias:
        raise ValueError(f"rows: required 0 without a bias, got {tile.rows}")
    chunks = prod(chunks_of(problem.forward, tile.rows, tile.columns)) if tile.rows else 1
    if chunks > most_bias_chunks(problem):
        raise ValueError(f"rows: required at most {most_bias_chunks(problem)} blocks of a sample, got {chunks}")
    from tvm_na.te.backward.gather_stages import Gradients

    def make() -> None:
        gradients = Gradients(problem, tile.lanes, batch_size)
        gradients.of_queries()
        if tile.rows:
            gradients.of_keys_and_bias(tile.rows, tile.columns)
        else:
            gradients.of_keys()
            if problem.forward.bias:
                gradients.of_bias()
        if problem.forward.bias:
            gradients.join_bias()

    return of_blocks(make, problem, tile.to_json())
