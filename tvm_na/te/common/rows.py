"""All axes of a map but the last, as one axis of *rows*: what a formulation that tiles the last axis needs of them.

A row's index counts through those axes, the last of them fastest; so does that of a row of a window. With one spatial
axis there is one row.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from tvm_na.problems.attention import NAProblem
from tvm_na.te.common.window import axis_window, minimum


def unravelled(index: Any, sizes: Sequence[int]) -> tuple[Any, ...]:
    """The index along each axis; the first needs no remainder."""
    if not sizes:
        return ()
    found: list[Any] = []
    for size in reversed(sizes[1:]):
        found.insert(0, index % size)
        index = index // size
    return (index, *found)


def ravelled(indices: Sequence[Any], sizes: Sequence[Any]) -> Any:
    """The one index of indices along several axes."""
    flat: Any = 0
    for index, size in zip(indices, sizes, strict=True):
        flat = index if isinstance(flat, int) and flat == 0 else flat * size + index
    return flat


class Rows:
    """Index arithmetic of rows, for Python integers and TVM expressions alike.

    Attributes:
        sizes: Of the axes.
        count: Rows of the map.
        keys: Rows of a full window.
        bias_rows: Rows of a relative position bias.
        groups: Dilation groups in the order of packed rows, and the rows of the longest. With two spatial axes, rows
            of one group are packed together; else as they lie.
    """

    def __init__(self, problem: NAProblem) -> None:
        self.sizes, self.kernel_size = problem.spatial[:-1], problem.kernel_size[:-1]
        self._axes, self._dilation = problem.axes[:-1], problem.dilation[:-1]
        self._biases = tuple(2 * k - 1 for k in self.kernel_size)
        self.count, self.keys, self.bias_rows = prod(self.sizes), prod(self.kernel_size), prod(self._biases)
        self._grouped = len(self.sizes) == 1
        if self._grouped:
            self.groups = (self._dilation[0], -(-self.sizes[0] // self._dilation[0]))
        else:
            self.groups = (1, self.count)
        self.is_causal = any(problem.is_causal[:-1])

    def place(self, i: Any) -> tuple[Any, ...]:
        """The position of row ``i`` along each axis."""
        return unravelled(i, self.sizes)

    def packed_row(self, group: Any, y: Any) -> Any:
        """The row at place ``y`` of a group; one behind the end of the map where a group has fewer."""
        return group + self.groups[0] * y if self._grouped else y

    def _windows(self, i: Any) -> list[tuple[Any, Any, Any]]:
        return [axis_window(position, *axis) for position, axis in zip(self.place(i), self._axes, strict=True)]

    def key(self, i: Any, a: Any) -> tuple[Any, Any]:
        """Group and place of the a-th row of the window of row ``i``; causality may mask it, but it is on the map."""
        windows = self._windows(i)
        if self._grouped:
            residue, start, _ = windows[0]
            return residue, start + a
        offsets = unravelled(a, self.kernel_size)
        axes = zip(windows, offsets, self._dilation, strict=True)
        return 0, ravelled([residue + d * (start + offset) for (residue, start, _), offset, d in axes], self.sizes)

    def key_row(self, i: Any, a: Any) -> Any:
        """The a-th row of the window of row ``i``."""
        return self.packed_row(*self.key(i, a))

    def exists(self, i: Any, a: Any) -> list[Any]:
        """What must hold for the window of row ``i`` to have an a-th row; nothing where no axis is causal."""
        axes = zip(self._windows(i), unravelled(a, self.kernel_size), self._axes, strict=True)
        return [start + offset < end for (_, start, end), offset, (*_, causal) in axes if causal]

    def bias_row(self, i: Any, a: Any) -> Any:
        """The row of a bias for the a-th row of a window; clamped to the bias where causality may mask it."""
        found = []
        axes = zip(self._windows(i), unravelled(a, self.kernel_size), self.place(i), self._axes, strict=True)
        for (_, start, _), offset, position, (_, k, _, d, causal) in axes:
            index = start + offset - position // d + k - 1
            found.append(minimum(index, 2 * k - 2) if causal else index)
        return ravelled(found, self._biases)

    def bias_place(self, y: Any) -> tuple[Any, ...]:
        """The index of row ``y`` of a bias along each axis."""
        return unravelled(y, self._biases)
