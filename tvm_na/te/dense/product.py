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
from tvm_na.te.common.layout import with_output_layout
from tvm_na.te.common.rows import unravelled

if TYPE_CHECKING:
    import numpy as np

    from tvm_na.te.common.halves import Conversions

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


def has_pairs(problem: DenseProblem) -> bool:
    """Whether packed weights are pairs of bfloat16 numbers in a word: of one input channel, and above it of the next.

    So a vector of words is loaded once for two channels, and a shift or a mask makes float32 numbers of either half.
    """
    return problem.stored_dtype == "bfloat16"


def packed_dtype(problem: DenseProblem) -> str:
    """The dtype of packed weights."""
    return "int32" if has_pairs(problem) else problem.stored_dtype


def channels_of(problem: DenseProblem) -> int:
    """Input channels that products run over: those of the input, and perhaps one of zeros."""
    return problem.in_channels + (problem.in_channels % 2 if has_pairs(problem) else 0)


def packed_shape(problem: DenseProblem, tile: DenseTile) -> tuple[int, ...]:
    """The shape of packed weights: blocks of output channels, window, input channels or pairs, channels of a block."""
    words = channels_of(problem) // (2 if has_pairs(problem) else 1)
    return (-(-problem.out_channels // tile.block), *problem.kernel_size, words, tile.block)


def pack_weight(weight: np.ndarray, problem: DenseProblem, tile: DenseTile) -> np.ndarray:
    """``weight`` as kernels of this tile read it, a new array of :func:`packed_shape`; missing channels are 0.

    Args:
        weight: ``[out_channels, *kernel_size, in_channels]`` in the dtype that the problem has for weights; of
            bfloat16, which NumPy lacks, the bits in uint16.
        problem: What the kernel computes.
        tile: Of the kernel's formulation.

    Raises:
        TypeError, ValueError: another dtype or shape.
    """
    import numpy as np

    wanted = "uint16" if has_pairs(problem) else problem.stored_dtype
    if str(weight.dtype) != wanted:
        raise TypeError(f"weight: required dtype {wanted}, got {weight.dtype}")
    if tuple(weight.shape) != problem.weight_shape:
        raise ValueError(f"weight: required shape {problem.weight_shape}, got {tuple(weight.shape)}")
    if has_pairs(problem):
        even = np.zeros((*weight.shape[:-1], channels_of(problem)), "uint16")
        even[..., : problem.in_channels] = weight
        weight = even.astype("<u2").view("<i4")  # the lower half first
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
        channel, exists = _existing(problem, c)
        inside += exists
        value = convert.widened(x[(b, *source, channel)])
        return tirx.if_then_else(tirx.all(*inside), value, tirx.const(0, convert.accum)) if inside else value

    return te.compute((batch, *sizes, channels_of(problem)), at, name="padded")


def _existing(problem: DenseProblem, channel: Any) -> tuple[Any, list[Any]]:
    """A channel of the input for one that products run over, and the conditions under which it is that."""
    from tvm import tirx

    if channels_of(problem) == problem.in_channels:
        return channel, []
    return tirx.min(channel, problem.in_channels - 1), [channel < problem.in_channels]


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
    def widened(b: Any, t: Any, r: Any, c: Any) -> Any:
        channel, exists = _existing(problem, c)
        value = convert.widened(read(b, t, r, [0] * problem.rank, channel))
        return tirx.if_then_else(exists[0], value, tirx.const(0, convert.accum)) if exists else value

    wide = te.compute((batch, tiles, rows, channels_of(problem)), widened, name="wide_rows")
    return lambda b, t, r, window, channel: wide[b, t, r, channel]


def _factor(problem: DenseProblem, weight: Any, float16_instructions: bool) -> Callable[..., Any]:
    """What products read of the packed weights, in the dtype of sums: a function of a block, place in the window, input
    channel and channel of the block."""
    from tvm import tirx

    from tvm_na.te.common.halves import Conversions

    convert = Conversions(problem.stored_dtype, problem.accum_dtype, float16_instructions)
    if not has_pairs(problem):
        return lambda c, window, channel, l: convert.widened(weight[(c, *window, channel, l)])

    def half(c: Any, window: Sequence[Any], channel: Any, l: Any) -> Any:
        word, upper = weight[(c, *window, channel // 2, l)], tirx.const(-(1 << 16), "int32")
        bits = tirx.Select(channel % 2 == 0, word << tirx.const(16, "int32"), word & upper)
        return tirx.reinterpret("float32", bits)

    return half


def forward(
    problem: DenseProblem, tile: DenseTile, batch_size: int | None = None, float16_instructions: bool = True
) -> Any:
    """``problem`` with ``tile`` as an unscheduled PrimFunc.

    Arguments: x ``[batch, *spatial, in]``, the packed weights, with int8 weights their scale ``[out]``, with a bias
    that ``[out]``, with a residual that ``[batch, *out_spatial, out]``, and the output of that shape; the batch is
    symbolic unless ``batch_size`` is given. Halves are converted as ``halves.py`` says.
    """
    from tvm import te

    from tvm_na.te.common.halves import Conversions
    from tvm_na.te.common.math import gelu

    accum, out_spatial, rows, positions = problem.accum_dtype, problem.out_spatial, tile.rows, positions_of(problem)
    convert = Conversions(problem.dtype, accum, float16_instructions)
    batch = batch_axis(batch_size)
    given = {a.name: a for a in problem.arguments() if a.role == "input"}
    shapes = {name: a.shape_for(batch) for name, a in given.items()} | {"weight": packed_shape(problem, tile)}
    dtypes = {name: a.dtype for name, a in given.items()} | {"weight": packed_dtype(problem)}
    inputs = {name: te.placeholder(shape, dtypes[name], name=name) for name, shape in shapes.items()}
    x, weight = inputs["x"], inputs["weight"]
    scale, bias, residual = map(inputs.get, ("weight_scale", "bias", "residual"))
    operand = _operand(problem, tile, x, batch, convert)
    window = [te.reduce_axis((0, k), name=f"k{axis}") for axis, k in enumerate(problem.kernel_size)]
    channel = te.reduce_axis((0, channels_of(problem)), name="channel")
    factor = _factor(problem, weight, float16_instructions)

    def product(b: Any, t: Any, c: Any, r: Any, l: Any) -> Any:
        return te.sum(operand(b, t, r, window, channel) * factor(c, window, channel, l), axis=[*window, channel])

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
