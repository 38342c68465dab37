"""Linear layers and convolutions in a form that a CPU with vector registers can tile.

The positions of the output are cut into tiles of a few rows, its channels into blocks of a few vectors. A tile's sums
for one block are what the registers hold: each step of the reduction multiplies a number of every row with a block of
weights, which lie together because they were packed so, ahead of time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvm_na.problems.base import HALVES
from tvm_na.problems.dense import DenseProblem
from tvm_na.te.common.formulation import Tile, batch_axis, of_expressions
from tvm_na.te.common.halves import Conversions
from tvm_na.te.common.layout import with_output_layout
from tvm_na.te.common.rows import unravelled

if TYPE_CHECKING:
    import numpy as np

#: What NumPy, which lacks a dtype, has its bits in.
BITS = {"bfloat16": "uint16"}
# The part of all tiles that may be added so that their number can be cut into tasks in more ways.
_MORE_TILES = 0.02


@dataclass(frozen=True)
class DenseTile(Tile):
    """The sizes that the expression itself depends on.

    Attributes:
        rows: Positions of the output per tile.
        vectors: Vectors of output channels per block.
        vector: Elements of a vector.
    """

    formulation = "dense"
    rows: int
    vectors: int
    vector: int

    @property
    def block(self) -> int:
        """Output channels per block."""
        return self.vectors * self.vector


def tile_of(func: Any) -> DenseTile:
    """The tile of a PrimFunc, which says how its weights are packed.

    Raises:
        ValueError: it is no function of :func:`forward`.
    """
    tile = DenseTile.of(func)
    if tile is None:
        raise ValueError(f"func: required a PrimFunc in the formulation {DenseTile.formulation}, got {func.attrs}")
    return tile


def packed_shape(problem: DenseProblem, tile: DenseTile) -> tuple[int, ...]:
    """The shape of packed weights: blocks of output channels, window, input channels, channels of a block."""
    return (-(-problem.out_channels // tile.block), *problem.kernel_size, problem.in_channels, tile.block)


def pack_weight(weight: np.ndarray, problem: DenseProblem, tile: DenseTile) -> np.ndarray:
    """``weight`` as kernels of this tile read it, a new array of :func:`packed_shape`; missing channels are 0.

    Args:
        weight: ``[out_channels, *kernel_size, in_channels]`` in the dtype that the problem has for weights;
            bfloat16, which NumPy lacks, as :data:`BITS` says.
        problem: What the kernel computes.
        tile: Of the kernel's formulation.

    Raises:
        TypeError, ValueError: another dtype or shape.
    """
    import numpy as np

    wanted = BITS.get(problem.stored_dtype, problem.stored_dtype)
    if str(weight.dtype) != wanted:
        raise TypeError(f"weight: required dtype {wanted}, got {weight.dtype}")
    if tuple(weight.shape) != problem.weight_shape:
        raise ValueError(f"weight: required shape {problem.weight_shape}, got {tuple(weight.shape)}")
    blocks, *inner, block = packed_shape(problem, tile)
    padded = np.zeros((blocks * block, *inner), weight.dtype)
    padded[: problem.out_channels] = weight
    return np.ascontiguousarray(np.moveaxis(padded.reshape(blocks, block, *inner), 1, -1))


def positions_of(problem: DenseProblem) -> int:
    """Positions of the output."""
    return math.prod(problem.out_spatial)


def tiles_of(problem: DenseProblem, tile: DenseTile) -> int:
    """Tiles of rows that are computed: those needed, and a few more if that number has more divisors up to 64."""
    needed = -(-positions_of(problem) // tile.rows)
    candidates = range(needed, needed + int(_MORE_TILES * needed) + 1)
    return max(candidates, key=lambda n: (sum(n % d == 0 for d in range(1, 65)), -n))


def copied_input(problem: DenseProblem) -> str | None:
    """The stage that copies the input in the dtype of sums; None if products read it as it is.

    ``padded`` has zeros around maps. ``wide_rows`` has the rows of a tile of a linear layer in halves.
    """
    if any(problem.padding) or (problem.dtype in HALVES and set(problem.kernel_size) != {1}):
        return "padded"
    return "wide_rows" if problem.dtype in HALVES else None


def _padded(problem: DenseProblem, x: Any, batch: Any, convert: Conversions) -> Any:
    """The input with zeros around it, as far as windows reach."""
    from tvm import te, tirx

    axes = list(zip(problem.out_spatial, problem.kernel_size, problem.stride, strict=True))
    sizes = [(n - 1) * s + k for n, k, s in axes]

    def at(*index: Any) -> Any:
        b, *place, c = index
        source, inside = [], []
        for i, size, pad, padded_size in zip(place, problem.spatial, problem.padding, sizes, strict=True):
            source.append(tirx.min(tirx.max(i - pad, 0), size - 1) if pad else i)
            inside += [i >= pad] if pad else []
            inside += [i < size + pad] if padded_size > size + pad else []
        value = convert.widened(x[(b, *source, c)])
        return tirx.if_then_else(tirx.all(*inside), value, tirx.const(0, convert.accum)) if inside else value

    return te.compute((batch, *sizes, problem.in_channels), at, name="padded")


def _operand(problem: DenseProblem, tile: DenseTile, x: Any, batch: Any, convert: Conversions) -> Callable[..., Any]:
    """What products read of the input: a function of a sample, tile, row, place in the window and channel."""
    from tvm import te, tirx

    rows, positions, tiles, copy = tile.rows, positions_of(problem), tiles_of(problem, tile), copied_input(problem)
    source = _padded(problem, x, batch, convert) if copy == "padded" else x

    def read(b: Any, t: Any, r: Any, window: Sequence[Any], channel: Any) -> Any:
        # Rows behind the last one repeat it: no step of the reduction has to ask.
        p = t * rows + r if tiles * rows == positions else tirx.min(t * rows + r, positions - 1)
        corner = unravelled(p, problem.out_spatial)
        place = [i * s + k for i, s, k in zip(corner, problem.stride, window, strict=True)]
        return source[(b, *place, channel)]

    if copy != "wide_rows":
        return read
    # Each number meets many weights, and is converted once.
    wide = te.compute(
        (batch, tiles, rows, problem.in_channels),
        lambda b, t, r, channel: convert.widened(read(b, t, r, [0] * problem.rank, channel)),
        name="wide_rows",
    )
    return lambda b, t, r, window, channel: wide[b, t, r, channel]


def forward(
    problem: DenseProblem, tile: DenseTile, batch_size: int | None = None, float16_instructions: bool = True
) -> Any:
    """``problem`` with ``tile`` as an unscheduled PrimFunc.

    Arguments: x ``[batch, *spatial, in]``, the packed weights, with int8 weights their scale ``[out]``, with a bias
    that ``[out]``, with a residual that ``[batch, *out_spatial, out]``, and the output of that shape; the batch is
    symbolic unless ``batch_size`` is given. Halves are converted as ``halves.py`` says.
    """
    from tvm import te

    from tvm_na.te.common.math import gelu

    accum, out_spatial, rows, positions = problem.accum_dtype, problem.out_spatial, tile.rows, positions_of(problem)
    convert = Conversions(problem.dtype, accum, float16_instructions)
    convert_weight = Conversions(problem.stored_dtype, accum, float16_instructions)
    batch = batch_axis(batch_size)
    given = {a.name: a for a in problem.arguments() if a.role == "input"}
    shapes = {name: a.shape_for(batch) for name, a in given.items()} | {"weight": packed_shape(problem, tile)}
    inputs = {name: te.placeholder(shape, given[name].dtype, name=name) for name, shape in shapes.items()}
    x, weight = inputs["x"], inputs["weight"]
    scale, bias, residual = map(inputs.get, ("weight_scale", "bias", "residual"))
    operand = _operand(problem, tile, x, batch, convert)
    window = [te.reduce_axis((0, k), name=f"k{axis}") for axis, k in enumerate(problem.kernel_size)]
    channel = te.reduce_axis((0, problem.in_channels), name="channel")

    def product(b: Any, t: Any, c: Any, r: Any, l: Any) -> Any:
        factor = convert_weight.widened(weight[(c, *window, channel, l)])
        return te.sum(operand(b, t, r, window, channel) * factor, axis=[*window, channel])

    sums = te.compute((batch, tiles_of(problem, tile), weight.shape[0], rows, tile.block), product, name="sums")

    def finished(b: Any, p: Any, o: Any) -> Any:
        value = sums[b, p // rows, o // tile.block, p % rows, o % tile.block]
        value = value if scale is None else value * scale[o]
        value = value if bias is None else value + convert.widened(bias[o])
        value = gelu(value, accum) if problem.activation == "gelu" else value
        if residual is not None:
            value = value + convert.widened(residual[(b, *unravelled(p, out_spatial), o)])
        return convert.rounded(value)

    out = te.compute((batch, positions, problem.out_channels), finished, name="out")
    func = of_expressions([*inputs.values(), out], problem, tile.to_json())
    if problem.rank == 1:
        return func
    # Loops stay those over positions: of loops over the axes of a map TVM cannot tell which tile they meet.
    return with_output_layout(func, lambda b, p, o: (b, *unravelled(p, out_spatial), o))
