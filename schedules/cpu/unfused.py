"""CPUs (LLVM): the unfused operators.

A task is a row of queries (of keys, where sums are over queries). Scores are register-blocked products with packed
keys; sums of values keep vectors of channels in registers over the whole window.
"""

from __future__ import annotations

from typing import Any

from tvm_na.problems.base import HALVES
from tvm_na.problems.unfused import UnfusedProblem
from tvm_na.schedules.base import Formulations, SearchSpace, largest_divisor
from tvm_na.schedules.cpu.vectors import IN_FLIGHT, STACK_BYTES, channel_vector, vector_length
from tvm_na.schedules.helpers import FuncSchedule
from tvm_na.targets.target import NATarget
from tvm_na.te.unfused.tiles import TransposedTile, UnfusedLanesTile

# Queries whose sums for a bias are added up in one task: few enough for float32, and many times the sums themselves.
_BIAS_TOKENS = 256
# Keys of a window's row that are written out.
_SHORT = 16
# Columns of a window that are one vector, of whatever registers it takes.
_LONG = 32


def _register(problem: UnfusedProblem, target: NATarget) -> int:
    """Elements of a vector register."""
    return vector_length(problem.accum_dtype, target)


def _accumulators(target: NATarget) -> int:
    """Accumulators that fit beside the operands of a multiply-add, and on the stack."""
    return min(target.vector_registers * 3 // 4, (STACK_BYTES - 1) // target.vector_bytes)


def lane_vectors(problem: UnfusedProblem, target: NATarget) -> list[int]:
    """Vectors for the columns of a window that are worth the tuner's time, the best first: those that waste least."""
    columns, register = problem.forward.kernel_size[-1], _register(problem, target)
    options = {max(1, register // 4), max(1, register // 2), register}
    return sorted(options, key=lambda v: (-(-columns // v) * (1 + v / register), -v))[:2]


def _transposed_tiles(problem: UnfusedProblem, target: NATarget) -> list[TransposedTile]:
    if problem.kind == "bias_sums":
        return [TransposedTile(tokens=tokens) for tokens in (_BIAS_TOKENS, 4 * _BIAS_TOKENS)]
    vector = channel_vector(problem.channels, _register(problem, target))
    vectors = problem.channels // vector
    limits = (_accumulators(target), 4)
    return [TransposedTile(vector, n) for n in dict.fromkeys(largest_divisor(vectors, limit) for limit in limits)]


class UnfusedSchedule(FuncSchedule):
    """Schedules one PrimFunc."""

    def __post_init__(self) -> None:
        self.rank = self.problem.rank
        self.register = _register(self.problem, self.target)
        self.accumulators = _accumulators(self.target)

    def build(self) -> None:
        kind = self.problem.kind
        getattr(self, "qk" if kind == "dots" else kind)()

    def vectorize(self, loop: Any) -> None:
        """Vectorise a loop that runs more than once."""
        if self.extent(loop) != 1:
            self.sch.vectorize(loop)

    def tasks(self, loops: list[Any]) -> tuple[list[Any], Any]:
        """Of the loops over samples and positions, those that are to be parallel, and that over the columns in a task.

        Tasks are rows; with one axis, parts of it.
        """
        *rows, column = loops
        if self.rank == 1:
            size = self.problem.spatial[0]
            part, column = self.tune.split("columns per task", column, size, largest_divisor(size, 64))
            rows.append(part)
        return rows, column

    def widen(self, name: str, loop: Any, extent: int) -> None:
        """What tokens have, converted where ``loop`` needs it: vectors, the last of which may be shorter."""
        self.sch.compute_at(self.block(name), loop, preserve_unit_loops=True)
        size = min(extent, self.register)
        self.vectorize(self.split(self.loops(name)[-1], [None, size])[1])

    def qk(self) -> None:
        """Rows of keys x vectors of columns as accumulators, the reduction over channels outside of them."""
        sch, p = self.sch, self.problem.forward
        vector, columns = self.tile.vector, p.kernel_size[-1]
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
        if p.dtype in HALVES:
            self.widen("token_query", column, p.head_dim)
        keys, lanes = self.problem.window // columns, -(-columns // vector)
        v, lane = self.split(l, [None, vector])
        vectors = largest_divisor(lanes, self.accumulators)
        v_outer, v_inner = self.tune.split("score vectors at once", v, lanes, vectors)
        limit = max(1, min(keys, 8, self.accumulators // vectors))
        even = -(-keys // -(-keys // limit))
        at_once = self.tune.one_of("score rows at once", range(1, min(keys, 8) + 1), default=even)
        a_outer, a_inner = self.split(a, [None, at_once])
        d_outer, d_inner = self.tune.split("score channels at once", d, p.head_dim, 1, limit=8)
        sch.reorder(v_outer, a_outer, d_outer, d_inner, a_inner, v_inner, lane)
        if keys <= 32:
            self.unroll(a_outer)
        self.unroll(d_inner, a_inner, v_inner)
        self.vectorize(lane)
        sch.parallel(sch.fuse(*tasks))  # before sums have two blocks
        self.vectorize(self.split_off_init("dots", d_outer, unrolled=2))

    def av(self) -> None:
        """Heads x vectors of channels as accumulators, the window outside of them."""
        from tvm_na.te.common.halves import Conversions

        sch, p = self.sch, self.problem.forward
        vector = channel_vector(p.head_dim, self.register)
        vectors = p.head_dim // vector
        *positions, h, x = self.loops("out")
        tasks, _ = self.tasks(positions)
        self.vectorize(self.split(x, [None, vector])[1])
        if not Conversions(p.dtype, p.accum_dtype, self.target.converts_float16).is_one_instruction:
            *packed, _, x_packed = self.loops("packed_value")
            self.vectorize(self.split(x_packed, [None, vector])[1])
            sch.parallel(sch.fuse(*packed))
        of_task = largest_divisor(vectors, self.accumulators)
        wanted = min(self.accumulators // of_task, -(-IN_FLIGHT // of_task))
        h_outer, _ = self.tune.split("heads at once", h, p.heads, largest_divisor(p.heads, wanted), limit=8)
        sch.compute_at(self.block("sums"), h_outer, preserve_unit_loops=True)
        if p.dtype in HALVES:
            self.widen("token_attn", h_outer, self.problem.window)
        h, x, a, l = self.loops("sums")[-4:]
        x, lane = self.split(x, [None, vector])
        x_outer, x_inner = self.tune.split("value vectors at once", x, vectors, of_task)
        sch.reorder(x_outer, a, l, h, x_inner, lane)
        self.unroll(h, x_inner)
        if p.kernel_size[-1] <= _SHORT:
            sch.unroll(l)
        self.vectorize(lane)
        sch.parallel(sch.fuse(*tasks))  # before sums have two blocks
        self.vectorize(self.split_off_init("sums", a, unrolled=2))

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
        short = 2 * self.problem.forward.kernel_size[-1] - 1 <= _LONG
        if short:
            self.vectorize(e)
        sch.parallel(h)
        zeros = self.split_off_init("total", b, unrolled=0)
        if short:
            self.vectorize(zeros)


class CpuUnfused(SearchSpace):
    """The unfused operators on CPUs."""

    name = "cpu-unfused"
    problems = UnfusedProblem
    tile_types = (UnfusedLanesTile, TransposedTile)
    schedule = UnfusedSchedule
    all_sketches = ("rows in parallel",)

    def serves(self, problem: UnfusedProblem, target: NATarget) -> bool:
        """Every dtype of tensors; no parts of the sums for a bias."""
        return target.kind == "llvm" and problem.kind != "bias_parts"

    def formulations(self, problem: UnfusedProblem, target: NATarget, batch: int | None = None) -> Formulations:
        """Some vectors of columns or of channels."""
        from tvm_na.te.unfused.lanes import av, qk
        from tvm_na.te.unfused.lanes_transposed import transposed

        halves = target.converts_float16
        if problem.kind in ("av_transposed", "bias_sums"):
            found = _transposed_tiles(problem, target)
            return Formulations(lambda tile: transposed(problem, tile, batch, halves), found)
        if problem.kind == "av":
            return Formulations(lambda vector: av(problem, vector, batch, halves), [_register(problem, target)])
        return Formulations(lambda vector: qk(problem, vector, batch, halves), lane_vectors(problem, target))


SPACE = CpuUnfused()
