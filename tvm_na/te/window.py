"""Windows of neighborhood attention along one axis, for Python integers and TVM expressions alike.

An axis of ``length`` positions with dilation d falls into d groups; group r holds the positions r, r + d,
r + 2d, ... In the coordinates of its group a window is a contiguous range, whatever the dilation.
Source: arXiv 2204.07143 and 2209.15001; stride and causal masking as in NATTEN (``docs/DESIGN.md``).
"""

from __future__ import annotations

from typing import Any


def _min(a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    from tvm import tirx

    return tirx.min(a, b)


def _max(a: Any, b: Any) -> Any:
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    from tvm import tirx

    return tirx.max(a, b)


def group_length(length: Any, dilation: int, residue: Any) -> Any:
    """The number of positions in group ``residue`` of an axis."""
    return (length - residue + dilation - 1) // dilation


def group_window(t: Any, length: Any, kernel_size: int, stride: int, is_causal: bool) -> tuple[Any, Any]:
    """``(start, end)`` of the window of position ``t`` in a group of ``length`` positions.

    Requires ``0 <= t < length`` and ``stride <= kernel_size <= length``. A window that is not causal has
    ``kernel_size`` positions; a causal one ends behind ``t`` and may be shorter.
    """
    base = t if stride == 1 else t // stride * stride
    if is_causal:
        leader = _min(base + (stride - 1), length - 1) if stride > 1 else base
        return _max(leader - (kernel_size - 1), 0), t + 1
    leader = _min(base + stride // 2, length - 1) if stride > 1 else base
    start = _max(_min(leader - kernel_size // 2, length - kernel_size), 0)
    return start, start + kernel_size


def axis_window(
    i: Any, length: int, kernel_size: int, stride: int, dilation: int, is_causal: bool
) -> tuple[Any, Any, Any]:
    """``(residue, start, end)`` of position ``i``: its neighbors are ``residue + dilation * t``, start <= t < end."""
    residue, t = (0, i) if dilation == 1 else (i % dilation, i // dilation)
    even = length % dilation == 0
    group = length // dilation if even else group_length(length, dilation, residue)
    start, end = group_window(t, group, kernel_size, stride, is_causal)
    return residue, start, end
