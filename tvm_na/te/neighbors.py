"""Where the keys of a query lie, as TVM expressions: shared by the formulations that read each window by itself."""

from __future__ import annotations

from typing import Any

from tvm import tirx

from tvm_na.problem import NAProblem
from tvm_na.te.window import axis_window


class Neighbors:
    """Index arithmetic of windows; ``position`` is a query's, ``offset`` a neighbor's in its window, one per axis."""

    def __init__(self, problem: NAProblem) -> None:
        self.problem = problem

    def _windows(self, position: tuple[Any, ...]) -> list[tuple[Any, Any, Any]]:
        p = self.problem
        axes = zip(position, p.spatial, p.kernel_size, p.stride, p.dilation, p.is_causal, strict=True)
        return [axis_window(*axis) for axis in axes]

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
