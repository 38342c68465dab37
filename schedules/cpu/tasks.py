"""How the work of attention is cut into tasks by default, and what packing the keys then costs.

The number of threads is not known: a kernel is built once. Known is how many a call is worth, and tasks are as many.
"""

from __future__ import annotations

from tvm_na.problems.attention import NAProblem
from tvm_na.schedules.base import divisors, largest_divisor
from tvm_na.targets.threads import threads_for
from tvm_na.te.backward.lanes_tile import Chunks
from tvm_na.te.common.rows import Rows

# The most threads that a call with one sample is expected to have.
_THREADS = 16
# As many times keys may be packed by tasks before packing them once, before all tasks, takes less: that costs a
# parallel loop, and keys are read from further away.
_TIMES_PACKED = 2.5


def _worth(problem: NAProblem) -> int:
    """Threads that a call with one sample is worth; a power of two, as most machines' numbers are."""
    return 1 << (threads_for(problem.useful_flops, _THREADS).bit_length() - 1)


def rows_per_task(problem: NAProblem) -> int:
    """The most rows of a task with which there are as many tasks as threads."""
    rows = Rows(problem).count
    enough = _worth(problem)
    return max(n for n in divisors(rows) if n == 1 or problem.heads * (rows // n) >= enough)


def heads_per_task(problem: NAProblem, rows: int) -> int:
    """The most heads of a task of so many rows with which there are twice as many tasks as threads."""
    return largest_divisor(problem.heads, problem.heads * (Rows(problem).count // rows) // (2 * _worth(problem)))


def packs_in_tasks(problem: NAProblem) -> bool:
    """Whether each task better packs the keys that it reads, though rows that several tasks read are packed by each."""
    rows, per_task = Rows(problem), rows_per_task(problem)
    reach = Chunks.of(rows, rows.count // per_task).reach
    if problem.rank > 2 and per_task % problem.spatial[-2] and problem.spatial[-2] % per_task:
        reach = rows.count  # of tasks that begin within a slice of a volume TVM does not know which rows they read
    return reach * problem.heads <= _TIMES_PACKED * per_task * problem.heads_kv
