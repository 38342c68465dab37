"""Where the keys of a query lie, and the queries of a key, as TVM expressions.

Shared by the formulations that read each window by itself.
"""

from __future__ import annotations

from typing import Any

from tvm import tirx

from tvm_na.problems.attention import NAProblem
from tvm_na.te.common.window import axis_key, axis_queries, axis_window, group_length, group_window, most_queries


class Neighbors:
    """Index arithmetic of windows; ``position`` is a query's, ``offset`` a neighbor's in its window, one per axis."""

    def __init__(self, problem: NAProblem) -> None:
        self.problem = problem

    def _windows(self, position: tuple[Any, ...]) -> list[tuple[Any, Any, Any]]:
        return [axis_window(i, *axis) for i, axis in zip(position, self.problem.axes, strict=True)]

    def key_position(self, position: tuple[Any, ...], offset: tuple[Any, ...]) -> list[Any]:
        """The position of a neighbor.

        A causal window may be shorter than kernel_size; what is behind its end must be masked, but can be read.
        """
        p = self.problem
        axes = zip(self._windows(position), offset, p.dilation, p.spatial, p.is_causal, strict=True)
        found = []
        for (residue, start, _), a, d, size, causal in axes:
            place = residue + d * (start + a)
            found.append(tirx.min(place, size - 1) if causal else place)
        return found

    def exists(self, position: tuple[Any, ...], offset: tuple[Any, ...]) -> Any:
        """Whether there is such a neighbor; None where every window is full, since nothing is causal."""
        axes = zip(self._windows(position), offset, self.problem.is_causal, strict=True)
        conditions = [start + a < end for (_, start, end), a, causal in axes if causal]
        return tirx.all(*conditions) if conditions else None

    def select(self, position: tuple[Any, ...], offset: tuple[Any, ...], value: Any, otherwise: Any) -> Any:
        """``value`` for a neighbor that exists."""
        there = self.exists(position, offset)
        return value if there is None else tirx.Select(there, value, otherwise)

    def bias_index(self, position: tuple[Any, ...], offset: tuple[Any, ...]) -> list[Any]:
        """(key - query) / dilation + kernel_size - 1; clamped where there may be no such neighbor."""
        p = self.problem
        axes = zip(self._windows(position), offset, position, p.dilation, p.kernel_size, p.is_causal, strict=True)
        found = []
        for (_, start, _), a, i, d, k, causal in axes:
            index = start + a - i // d + k - 1
            found.append(tirx.min(tirx.max(index, 0), 2 * k - 2) if causal else index)
        return found

    def offset_of(self, position: tuple[Any, ...], index: tuple[Any, ...]) -> tuple[list[Any], Any]:
        """The offset of the neighbor with this index into the bias, and whether there is such a neighbor.

        The inverse of :meth:`bias_index`; where there is none, the offset is that of another position of the window.
        """
        found, conditions = [], []
        for i, e, axis in zip(position, index, self.problem.axes, strict=True):
            _, _, offset, there = axis_key(i, e, *axis)
            found.append(tirx.min(tirx.max(offset, 0), axis[1] - 1))
            conditions += there
        return found, tirx.all(*conditions)


class Queries:
    """Index arithmetic of the queries that see a key; ``position`` is the key's, ``number`` one of the queries, counted
    from the first that sees it, one per axis.

    Attributes:
        most: The largest number of queries that see one key, per axis.
    """

    def __init__(self, problem: NAProblem) -> None:
        self.problem = problem
        self.most = tuple(most_queries(*axis) for axis in problem.axes)

    def _found(self, position: tuple[Any, ...], number: tuple[Any, ...]) -> list[tuple[Any, Any, Any]]:
        """Per axis: the residue, the query in its group, repeating the last one, and whether there are so many."""
        found = []
        for i, a, axis in zip(position, number, self.problem.axes, strict=True):
            residue, start, end = axis_queries(i, *axis)
            found.append((residue, tirx.min(start + a, end - 1), start + a < end))
        return found

    def query_position(self, position: tuple[Any, ...], number: tuple[Any, ...]) -> list[Any]:
        """The position of a query; beyond the last one that sees the key, of that one, which must be masked."""
        found = zip(self._found(position, number), self.problem.dilation, strict=True)
        return [residue + d * t for (residue, t, _), d in found]

    def exists(self, position: tuple[Any, ...], number: tuple[Any, ...]) -> Any:
        """Whether so many queries see the key."""
        return tirx.all(*(there for _, _, there in self._found(position, number)))

    def key_offset(self, position: tuple[Any, ...], number: tuple[Any, ...]) -> list[Any]:
        """The key's offset in the window of the query at :meth:`query_position`."""
        offsets = []
        axes = zip(position, self._found(position, number), self.problem.axes, strict=True)
        for i, (residue, t, _), (length, k, stride, d, causal) in axes:
            start, _ = group_window(t, group_length(length, d, residue), k, stride, causal)
            offsets.append(i // d - start)
        return offsets

    def bias_index(self, position: tuple[Any, ...], number: tuple[Any, ...]) -> list[Any]:
        """(key - query) / dilation + kernel_size - 1, of the query at :meth:`query_position`."""
        p = self.problem
        axes = zip(position, self._found(position, number), p.dilation, p.kernel_size, strict=True)
        return [i // d - t + k - 1 for i, (_, t, _), d, k in axes]
