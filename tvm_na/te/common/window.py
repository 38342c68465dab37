"""Windows of neighborhood attention along one axis, for Python integers and TVM expressions alike.

An axis of ``length`` positions with dilation d falls into d groups; group r holds the positions r, r + d,
r + 2d, ... In the coordinates of its group a window is a contiguous range, whatever the dilation.
Source: arXiv 2204.07143 and 2209.15001; stride and causal masking as in NATTEN (``docs/design/expressions.md``).
"""

from __future__ import annotations

from typing import Any


def minimum(a: Any, b: Any) -> Any:
    """Of integers or expressions."""
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    from tvm import tirx

    return tirx.min(a, b)


def maximum(a: Any, b: Any) -> Any:
    """Of integers or expressions."""
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    from tvm import tirx

    return tirx.max(a, b)


def select(condition: Any, value: Any, otherwise: Any) -> Any:
    """``value`` where the condition holds."""
    if isinstance(condition, bool):
        return value if condition else otherwise
    from tvm import tirx

    return tirx.Select(condition, value, otherwise)


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
        leader = minimum(base + (stride - 1), length - 1) if stride > 1 else base
        return maximum(leader - (kernel_size - 1), 0), t + 1
    leader = minimum(base + stride // 2, length - 1) if stride > 1 else base
    start = maximum(minimum(leader - kernel_size // 2, length - kernel_size), 0)
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


def group_queries(s: Any, length: Any, kernel_size: int, stride: int, is_causal: bool) -> tuple[Any, Any]:
    """``(start, end)`` of the queries that see position ``s`` in a group of ``length`` positions.

    The inverse of :func:`group_window`, with its requirements. Windows begin in the order of their queries, so those
    that hold ``s`` are a range; ``s`` sees itself, so it is never empty, and begins with ``s`` where it is causal.
    """
    # Windows behind `end` begin behind s. None begins behind length - kernel_size.
    reach = kernel_size if is_causal else kernel_size // 2 + (stride + 1) // 2
    end = select(s >= length - kernel_size, length, (s + reach) // stride * stride)
    if is_causal:
        return s, end
    # Windows before `start` end at s or before. None ends before kernel_size.
    back = (kernel_size + 1) // 2 - (stride + 1) // 2
    return select(s < kernel_size, 0, (s - back) // stride * stride), end


def axis_queries(
    i: Any, length: int, kernel_size: int, stride: int, dilation: int, is_causal: bool
) -> tuple[Any, Any, Any]:
    """``(residue, start, end)`` of position ``i``: ``residue + dilation * t``, start <= t < end, are the queries that
    see it."""
    residue, s = (0, i) if dilation == 1 else (i % dilation, i // dilation)
    even = length % dilation == 0
    group = length // dilation if even else group_length(length, dilation, residue)
    start, end = group_queries(s, group, kernel_size, stride, is_causal)
    return residue, start, end


def axis_key(
    i: Any, index: Any, length: int, kernel_size: int, stride: int, dilation: int, is_causal: bool
) -> tuple[Any, Any, Any, list[Any]]:
    """``(residue, t, offset, conditions)`` of the key at an index of the bias: it lies at ``residue + dilation * t``.

    It has this offset in the window of position ``i``, which holds it where all conditions hold.
    """
    residue, start, end = axis_window(i, length, kernel_size, stride, dilation, is_causal)
    t = i // dilation + index - (kernel_size - 1)
    return residue, t, t - start, [start <= t, t < end]


def most_queries(length: int, kernel_size: int, stride: int, dilation: int, is_causal: bool) -> int:
    """The largest number of queries that see one position of an axis."""
    groups = {group_length(length, dilation, residue) for residue in (0, dilation - 1)}  # the longest, the shortest
    ranges = (group_queries(s, n, kernel_size, stride, is_causal) for n in groups for s in range(n))
    return max(end - start for start, end in ranges)
