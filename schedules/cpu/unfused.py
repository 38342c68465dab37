"""CPUs (LLVM): the unfused operators, in float32 and float64.

A task is a row of queries (of keys, where sums are over queries). Scores are register-blocked products with packed
keys; sums of values keep vectors of channels in registers over the whole window.
"""

from __future__ import annotations

from typing import Any

from tvm_na.problems.unfused import UnfusedProblem
from tvm_na.schedules.base import Opened, Plan, Scheduled, largest_divisor, open_func, unfused_of
from tvm_na.targets.target import NATarget

STRUCTURES = ("rows in parallel",)

# Queries whose sums for a bias are added up in one task: few enough for float32, and many times the sums themselves.
_BIAS_TOKENS = 256
# Multiply-adds that must be under way at once, since each waits for the one before it: two pipes, four cycles.
_IN_FLIGHT = 8
# From so many bytes on TVM takes sums from a pool of memory, not from the stack, and they are in no register.
_STACK_BYTES = 1024
# Keys of a window's row that are written out.
_SHORT = 16
# Columns of a window that are one vector, of whatever registers it takes.
_LONG = 32


def serves(problem: UnfusedProblem, target: NATarget) -> bool:
    """Whether this space has a kernel for ``problem`` on ``target``: not for parts of the sums for a bias."""
    return target.kind == "llvm" and problem.dtype in ("float32", "float64") and problem.kind != "bias_parts"


def _register(problem: UnfusedProblem, target: NATarget) -> int:
    """Elements of a vector register."""
    return target.vector_bytes // (8 if problem.accum_dtype == "float64" else 4)


def _accumulators(target: NATarget) -> int:
    """Accumulators that fit beside the operands of a multiply-add, and on the stack."""
    return min(target.vector_registers * 3 // 4, (_STACK_BYTES - 1) // target.vector_bytes)


def lane_vectors(problem: UnfusedProblem, target: NATarget) -> list[int]:
    """Vectors for the columns of a window that are worth the tuner's time, the best first: those that waste least."""
    columns, register = problem.forward.kernel_size[-1], _register(problem, target)
    options = {max(1, register // 4), max(1, register // 2), register}
    return sorted(options, key=lambda v: (-(-columns // v) * (1 + v / register), -v))[:2]


def channel_vector(dim: int, register: int) -> int:
    """Elements of ``dim`` channels in a vector: a register of them, half of one, or what divides them."""
    if dim <= register:
        return dim
    power = largest_divisor(register, dim & -dim)
    return power if power >= register // 2 else largest_divisor(dim, register)


def _transposed_tiles(problem: UnfusedProblem, target: NATarget) -> list[Any]:
    from tvm_na.te.unfused.lanes_transposed import TransposedTile

    if problem.kind == "bias_sums":
        return [TransposedTile(tokens=tokens) for tokens in (_BIAS_TOKENS, 4 * _BIAS_TOKENS)]
    vector = channel_vector(problem.channels, _register(problem, target))
    vectors = problem.channels // vector
    limits = (_accumulators(target), 4)
    return [TransposedTile(vector, n) for n in dict.fromkeys(largest_divisor(vectors, limit) for limit in limits)]


def formulations(problem: UnfusedProblem, target: NATarget, batch: int | None = None) -> list[Any]:
    """The PrimFuncs of ``problem`` that are worth scheduling, the default first."""
    if problem.kind in ("av_transposed", "bias_sums"):
        from tvm_na.te.unfused.lanes_transposed import transposed

        return [transposed(problem, tile, batch) for tile in _transposed_tiles(problem, target)]
    from tvm_na.te.unfused.lanes import av, qk

    if problem.kind == "av":
        return [av(problem, _register(problem, target), batch)]
    return [qk(problem, vector, batch) for vector in lane_vectors(problem, target)]


def structures(func: Any, target: NATarget) -> tuple[str, ...]:
    """The only structure."""
    return STRUCTURES


def apply(func: Any, target: NATarget, plan: Plan = Plan()) -> Scheduled | None:  # noqa: B008
    """The schedule of an unfused PrimFunc; None for any other function or target.

    Args:
        func: An unscheduled PrimFunc of :mod:`tvm_na.te.unfused.lanes` or :mod:`tvm_na.te.unfused.lanes_transposed`.
        target: The machine.
        plan: Which point of the space is wanted.

    Raises:
        ValueError: if there is no such structure.
    """
    problem = unfused_of(func, "unfused", "unfused transposed")
    if problem is None or not serves(problem, target):
        return None
    opened = open_func(func, plan, STRUCTURES)
    schedule = _Schedule(opened, problem, target)
    {"qk": schedule.qk, "dots": schedule.qk, "av": schedule.av, "av_transposed": schedule.av_transposed}.get(
        problem.kind, schedule.bias_sums
    )()
    return opened.scheduled()


class _Schedule:
    """Schedules one PrimFunc; decisions are made in the order of the calls."""

    def __init__(self, opened: Opened, problem: UnfusedProblem, target: NATarget) -> None:
        self.sch, self.decide, self.formulation = opened.schedule, opened.decide, opened.formulation
        self.problem, self.rank = problem, problem.rank
        self.register = _register(problem, target)
        self.accumulators = _accumulators(target)

    def block(self, name: str) -> Any:
        return self.sch.get_sblock(name)

    def loops(self, name: str) -> list[Any]:
        return list(self.sch.get_loops(self.block(name)))

    def vectorize(self, loop: Any) -> None:
        if getattr(self.sch.get(loop).extent, "value", 2) != 1:
            self.sch.vectorize(loop)

    def split(self, loop: Any, factors: list[Any]) -> list[Any]:
        return list(self.sch.split(loop, factors, preserve_unit_iters=True))

    def tasks(self, loops: list[Any]) -> tuple[list[Any], Any]:
        """Of the loops over samples and positions, those that are to be parallel, and that over the columns in a task.

        Tasks are rows; with one axis, parts of it.
        """
        *rows, column = loops
        if self.rank == 1:
            size = self.problem.spatial[0]
            part, column = self.decide.split("columns per task", column, size, largest_divisor(size, 64))
            rows.append(part)
        return rows, column

    def split_off_init(self, name: str, loop: Any, unrolled: int) -> None:
        """The zeros of a reduction in a block of their own in front of ``loop``, unrolled and vectorised."""
        init = self.sch.decompose_reduction(self.block(name), loop)
        loops = self.sch.get_loops(init)
        for outer in loops[len(loops) - 1 - unrolled : -1]:
            self.sch.unroll(outer)
        if getattr(self.sch.get(loops[-1]).extent, "value", 0) <= _LONG:
            self.vectorize(loops[-1])

    def qk(self) -> None:
        """Rows of keys x vectors of columns as accumulators, the reduction over channels outside of them."""
        sch, p = self.sch, self.problem.forward
        vector, columns = self.formulation["vector"], p.kernel_size[-1]
        packed = self.loops("packed_key")
        self.vectorize(self.split(packed[-1], [None, vector])[1])
        sch.parallel(sch.fuse(*packed[:4]))

        # Scores go to their products, not the other way round: else TVM would leave out the lanes that none needs.
        *positions, h, a, l, d = self.loops("dots")
        tasks, column = self.tasks(positions)
        sch.reorder(h, column)  # the keys of one head at a time fit the first cache
        sch.reverse_compute_at(self.block("out"), column, preserve_unit_loops=True)
        if columns <= _LONG:  # longer ones are LLVM's to vectorise
            self.vectorize(self.split(self.loops("out")[-1], [None, columns])[1])
        keys, lanes = self.problem.window // columns, -(-columns // vector)
        v, lane = self.split(l, [None, vector])
        vectors = largest_divisor(lanes, self.accumulators)
        v_outer, v_inner = self.decide.split("score vectors at once", v, lanes, vectors)
        limit = max(1, min(keys, 8, self.accumulators // vectors))
        even = -(-keys // -(-keys // limit))
        at_once = self.decide.one_of("score rows at once", range(1, min(keys, 8) + 1), default=even)
        a_outer, a_inner = self.split(a, [None, at_once])
        d_outer, d_inner = self.decide.split("score channels at once", d, p.head_dim, 1, limit=8)
        sch.reorder(v_outer, a_outer, d_outer, d_inner, a_inner, v_inner, lane)
        for loop in (a_outer, d_inner, a_inner, v_inner) if keys <= 32 else (d_inner, a_inner, v_inner):
            sch.unroll(loop)
        self.vectorize(lane)
        sch.parallel(sch.fuse(*tasks))  # before sums have two blocks
        self.split_off_init("dots", d_outer, unrolled=2)

    def av(self) -> None:
        """Heads x vectors of channels as accumulators, the window outside of them."""
        sch, p = self.sch, self.problem.forward
        vector = channel_vector(p.head_dim, self.register)
        vectors = p.head_dim // vector
        *positions, h, x = self.loops("out")
        tasks, _ = self.tasks(positions)
        self.vectorize(self.split(x, [None, vector])[1])
        of_task = largest_divisor(vectors, self.accumulators)
        wanted = min(self.accumulators // of_task, -(-_IN_FLIGHT // of_task))
        h_outer, _ = self.decide.split("heads at once", h, p.heads, largest_divisor(p.heads, wanted), limit=8)
        sch.compute_at(self.block("sums"), h_outer, preserve_unit_loops=True)
        h, x, a, l = self.loops("sums")[-4:]
        x, lane = self.split(x, [None, vector])
        x_outer, x_inner = self.decide.split("value vectors at once", x, vectors, of_task)
        sch.reorder(x_outer, a, l, h, x_inner, lane)
        sch.unroll(h)
        sch.unroll(x_inner)
        if p.kernel_size[-1] <= _SHORT:
            sch.unroll(l)
        self.vectorize(lane)
        sch.parallel(sch.fuse(*tasks))  # before sums have two blocks
        self.split_off_init("sums", a, unrolled=2)

    def av_transposed(self) -> None:
        """Rows of keys in parallel; all else is as it was written."""
        tasks, _ = self.tasks(self.loops("out")[: self.rank + 1])
        self.sch.parallel(self.sch.fuse(*tasks))

    def bias_sums(self) -> None:
        """A task for each sample, head and chunk of queries, then one for each head."""
        sch = self.sch
        sch.parallel(sch.fuse(*self.loops("partial")))
        h, y, e, b, c = self.loops("total")
        sch.reorder(h, y, b, c, e)
        if 2 * self.problem.forward.kernel_size[-1] - 1 <= _LONG:
            self.vectorize(e)
        sch.parallel(h)
        self.split_off_init("total", b, unrolled=0)
