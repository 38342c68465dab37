"""CPUs (LLVM): every two-dimensional float32 and float64 problem, through the lanes formulation.

Parallel over batch, head and row; in a row, tile after tile of queries. A tile's scores and its
output are register-blocked matrix products. See ``docs/DESIGN.md`` for what was measured.
"""

from __future__ import annotations

import json
from typing import Any

from tvm_na.problem import NAProblem
from tvm_na.schedules.base import STRUCTURE, Decisions, Plan, Scheduled, largest_divisor
from tvm_na.target import NATarget
from tvm_na.te.lanes import LanesTile, lanes_of

# The elements between neighboring values of one head from which on values are packed: further apart than
# this, the values of a window fall into few sets of the first cache.
_PACK_VALUES_FROM = 256

# The stages of a tile, last first.
_TILE_STAGES = ("attended", "total", "total_lanes", "weights", "maximum", "maximum_lanes", "scores", "dots")


def serves(problem: NAProblem, target: NATarget) -> bool:
    """Whether this space has a kernel for ``problem`` on ``target``."""
    return target.kind == "llvm" and problem.rank == 2 and problem.dtype in ("float32", "float64")


def vector_length(problem: NAProblem, target: NATarget) -> int:
    """Elements of the problem's dtype in one vector register."""
    return target.vector_bytes // (8 if problem.accum_dtype == "float64" else 4)


def tiles(problem: NAProblem, target: NATarget) -> list[LanesTile]:
    """Tiles of the lanes formulation, the one expected to be the fastest first."""
    vector = vector_length(problem, target)
    columns = -(-problem.spatial[1] // problem.dilation[1])
    pack = problem.dilation[1] * problem.heads_kv * problem.head_dim_v >= _PACK_VALUES_FROM

    def cost(tile: LanesTile) -> tuple[float, int]:
        # Vector operations: products, and what loading keys and queries costs beside them.
        vectors = lanes_of(problem, tile) // tile.vector
        count = -(-columns // tile.queries)
        return count * (vectors * tile.queries + 0.5 * vectors + 0.3 * tile.queries), -tile.queries

    limit = min(columns, target.vector_registers // 2)
    return sorted((LanesTile(q, vector, pack_values=pack) for q in range(1, limit + 1)), key=cost)


def formulations(problem: NAProblem, target: NATarget, batch: int | None = None) -> list[Any]:
    """The PrimFuncs of ``problem`` that this space schedules, the default first."""
    from tvm_na.te.lanes import forward

    return [forward(problem, tile, batch) for tile in tiles(problem, target)[:1]]


def structures(func: Any, target: NATarget) -> tuple[str, ...]:
    """The structures for a lanes PrimFunc, the default first."""
    return ("pack first",)


def apply(func: Any, target: NATarget, plan: Plan = Plan()) -> Scheduled | None:  # noqa: B008
    """The schedule of a lanes PrimFunc; None for any other function or target.

    Args:
        func: An unscheduled PrimFunc of :func:`tvm_na.te.lanes.forward`.
        target: The machine.
        plan: Which point of the space is wanted.
    """
    import tvm
    from tvm import s_tir

    if not func.attrs or "tvm_na.formulation" not in func.attrs:
        return None
    formulation = json.loads(str(func.attrs["tvm_na.formulation"]))
    problem = NAProblem.from_json(str(func.attrs["tvm_na.problem"]))
    if formulation.pop("formulation") != "lanes" or not serves(problem, target):
        return None
    sch = s_tir.Schedule(tvm.IRModule({"main": func}))
    structure = plan.structure or structures(func, target)[0]
    decide = Decisions(sch, plan)
    _LanesSchedule(sch, problem, LanesTile(**formulation), target, decide).build()
    sch.annotate(sch.get_sblock("out"), STRUCTURE, structure)
    return Scheduled(sch, structure, tuple(decide.made))


class _LanesSchedule:
    def __init__(self, sch: Any, problem: NAProblem, tile: LanesTile, target: NATarget, decide: Decisions) -> None:
        self.sch, self.problem, self.tile = sch, problem, tile
        self.decide = decide
        self.rows = problem.kernel_size[0]
        self.vectors = lanes_of(problem, tile) // tile.vector
        # Accumulators that fit beside the operands of a multiply-add.
        self.accumulators = target.vector_registers * 3 // 4

    def block(self, name: str) -> Any:
        return self.sch.get_sblock(name)

    def inner_loops(self, block: Any, n: int) -> list[Any]:
        return list(self.sch.get_loops(block)[-n:])

    def build(self) -> None:
        self.pack()
        self.place_in_tiles()
        self.dots()
        self.softmax()
        self.attended()

    def pack(self) -> None:
        sch = self.sch
        *_, row, group, d, c = sch.get_loops(self.block("packed_key"))
        tiles, lane = sch.split(c, [None, self.tile.vector], preserve_unit_iters=True)
        sch.reorder(group, tiles, d, lane)
        sch.vectorize(lane)
        if self.tile.pack_values:
            *_, value_row, _, _, c = sch.get_loops(self.block("packed_value"))
            sch.vectorize(self.vector_of(c)[1])
            sch.merge(row, value_row)  # waking the threads costs more than a small copy
        sch.parallel(sch.fuse(*sch.get_loops(self.block("packed_key"))[:4]))
        if self.problem.bias:
            sch.vectorize(sch.get_loops(self.block("padded_bias"))[-1])

    def place_in_tiles(self) -> None:
        """Parallel over (batch, head, row); in a row, tile after tile with all stages of a tile inside."""
        sch = self.sch

        def row_of(name: str) -> Any:
            batch, i, j, head, *rest = sch.get_loops(self.block(name))
            sch.reorder(batch, head, i, j, *rest)
            return i

        row, tiles = row_of("out"), ["normalised"]
        if self.problem.return_lse:
            # Two outputs share a tile's sums: only in one loop nest can both have them at hand.
            row = sch.merge(row, row_of("lse"))
            tiles.append("tiled_lse")
        for name in tiles:  # each as early in the row as can be, so that both end up before the outputs
            sch.compute_at(self.block(name), row, preserve_unit_loops=True, index=-2)
        # batch, head, row; then of the row's tiles: batch, head, row (of extent 1), group, tile, query, ...
        tile = sch.get_loops(self.block("normalised"))[7]
        if self.problem.return_lse:
            tile = sch.merge(tile, sch.get_loops(self.block("tiled_lse"))[7])
        for name in _TILE_STAGES:
            sch.compute_at(self.block(name), tile, preserve_unit_loops=True)
        for name in ("out", "normalised"):
            x = sch.get_loops(self.block(name))[-1]
            sch.vectorize(self.vector_of(x)[1])
        sch.parallel(sch.fuse(*sch.get_loops(self.block("out"))[:3]))

    def vector_width(self) -> int:
        """Elements of ``head_dim_v`` in a vector: a register of them, half of one, or what divides it."""
        dim, limit = self.problem.head_dim_v, self.tile.vector
        if dim <= limit:
            return dim
        power = largest_divisor(limit, dim & -dim)
        return power if power >= limit // 2 else largest_divisor(dim, limit)

    def vector_of(self, loop: Any) -> list[Any]:
        """A loop over ``head_dim_v`` split into vectors; the inner one is to be vectorised."""
        return list(self.sch.split(loop, [None, self.vector_width()], preserve_unit_iters=True))

    def dots(self) -> None:
        """queries x rows x vectors accumulators, the reduction over head_dim inside of every block of them."""
        sch, tile = self.sch, self.tile
        u, a, l, d = self.inner_loops(self.block("dots"), 4)
        v, lane = sch.split(l, [None, tile.vector], preserve_unit_iters=True)
        vectors_inner = largest_divisor(self.vectors, max(1, self.accumulators // tile.queries))
        v_outer, v_inner = self.decide.split("score vectors at once", v, self.vectors, vectors_inner)
        queries_inner = largest_divisor(tile.queries, self.accumulators)
        u_outer, u_inner = self.decide.split("score queries at once", u, tile.queries, queries_inner)
        rows = self.even_block(self.rows, self.accumulators // (queries_inner * vectors_inner))
        row_block = self.decide.one_of("score rows at once", range(1, min(self.rows, 8) + 1), default=rows)
        a_outer, a_inner = sch.split(a, [None, row_block], preserve_unit_iters=True)
        sch.reorder(u_outer, a_outer, v_outer, d, a_inner, v_inner, u_inner, lane)
        # Unrolled, so that a last block with fewer rows costs no test inside.
        for loop in (a_outer, a_inner, v_inner, u_inner):
            self.unroll(loop)
        sch.vectorize(lane)
        self.split_off_init("dots", d, unrolled=3)

    @staticmethod
    def even_block(n: int, limit: int) -> int:
        """The block size, at most ``limit`` and 8, that cuts ``n`` into few blocks of about the same size."""
        limit = max(1, min(limit, 8, n))
        return -(-n // -(-n // limit))

    def split_off_init(self, name: str, loop: Any, unrolled: int) -> None:
        """The zeros of a reduction in a block of their own in front of ``loop``, unrolled and vectorised."""
        init = self.sch.decompose_reduction(self.block(name), loop)
        loops = self.sch.get_loops(init)
        for outer in loops[-1 - unrolled : -1]:
            self.unroll(outer)
        self.sch.vectorize(loops[-1])

    def softmax(self) -> None:
        sch, tile = self.sch, self.tile
        short = self.rows * self.vectors <= 16
        for name in ("scores", "weights"):
            _, a, l = self.inner_loops(self.block(name), 3)
            v, lane = sch.split(l, [None, tile.vector], preserve_unit_iters=True)
            sch.vectorize(lane)
            if short:
                self.unroll(a)
                self.unroll(v)
        for name in ("maximum", "total"):
            lane, a, v = self.inner_loops(self.block(f"{name}_lanes"), 3)
            sch.reorder(a, v, lane)
            sch.vectorize(lane)
            if short:
                self.unroll(a)
                self.unroll(v)
            self.split_off_init(f"{name}_lanes", a, unrolled=0)
            self.unroll(self.inner_loops(self.block(name), 1)[0])

    def attended(self) -> None:
        """queries x vectors of head_dim_v accumulators, over the keys of the window."""
        sch, dim = self.sch, self.problem.head_dim_v
        u, x, a, l = self.inner_loops(self.block("attended"), 4)
        x, lane = self.vector_of(x)
        vectors = dim // self.vector_width()
        vectors_inner = largest_divisor(vectors, self.accumulators)
        x_outer, x_inner = self.decide.split("value vectors at once", x, vectors, vectors_inner)
        queries = self.even_block(self.tile.queries, self.accumulators // vectors_inner)
        query_block = self.decide.one_of(
            "value queries at once", range(1, min(self.tile.queries, 8) + 1), default=queries
        )
        u_outer, u_inner = sch.split(u, [None, query_block], preserve_unit_iters=True)
        sch.reorder(u_outer, x_outer, a, l, u_inner, x_inner, lane)
        for loop in (u_outer, u_inner, x_inner):
            self.unroll(loop)
        sch.vectorize(lane)
        self.split_off_init("attended", a, unrolled=2)

    def unroll(self, loop: Any) -> None:
        # Where a region is inferred from uneven groups, its extent is an expression: that stays a loop.
        if hasattr(self.sch.get(loop).extent, "value"):
            self.sch.unroll(loop)
