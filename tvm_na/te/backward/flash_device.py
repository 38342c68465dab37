"""Device functions that the flash formulation of the gradients calls, beside those of the attention's."""

from __future__ import annotations

from typing import Any

from tvm_na.te.attention.flash_device import call


def read_pair(to: Any, source: Any) -> Any:
    """Two numbers of 32 bits at an address, to registers at another."""
    body = "float2 pair = *(const float2*)source; to[0] = pair.x; to[1] = pair.y;"
    return call("void", "tvm_na_read_pair", "float* to, const void* source", body, to, source)


def read_float(source: Any, index: Any) -> Any:
    """The number of 32 bits at an index behind an address."""
    return call("float", "tvm_na_read_float", "const void* at, int index", "return ((float*)at)[index];", source, index)


def write_float(to: Any, index: Any, value: Any) -> Any:
    """A number of 32 bits to an index behind an address."""
    body = "((float*)at)[index] = value;"
    return call("void", "tvm_na_write_float", "void* at, int index, float value", body, to, index, value)


def warp_barrier() -> Any:
    """The lanes of a warp wait for each other."""
    return call("void", "tvm_na_warp_barrier", "", "__syncwarp();")


def add_diagonals(
    sums: Any, square: Any, entry: Any, place: Any, lane: Any, shape: tuple[int, int, int, int], table: tuple[int, int]
) -> Any:
    """Add the gradients of scores of a sub-tile of keys and some queries to the sums for the bias.

    Those of keys and queries that are as far apart are one entry's, and one lane adds them up: a diagonal.

    Args:
        sums: The address of the warp's.
        square: The address of a row of gradients for each key.
        entry: The number of the entry of the first key and the first query.
        place: The same along the last axis.
        lane: The number of the lane.
        shape: Rows and columns of keys, queries, and numbers from one key's row to the next.
        table: Entries in all, and along the last axis.
    """
    rows, columns, queries, pitch = shape
    count, width = table
    body = f"""
  float* sums = (float*)to;
  const float* square = (const float*)from;
  for (int row = 0; row < {rows}; ++row) {{
    #pragma unroll
    for (int first = {1 - queries}; first < {columns}; first += 32) {{
      const int away = first + lane;
      float sum = 0.0f;
      #pragma unroll
      for (int key = 0; key < {columns}; ++key) {{
        const int query = key - away;
        if (query >= 0 && query < {queries}) sum += square[(row * {columns} + key) * {pitch} + query];
      }}
      const int at = entry + row * {width} + away, column = place + away;
      if (away < {columns} && column >= 0 && column < {width} && at >= 0 && at < {count}) sums[at] += sum;
    }}
  }}
"""
    parameters = "void* to, const void* from, int entry, int place, int lane"
    return call("void", "tvm_na_add_diagonals", parameters, body, sums, square, entry, place, lane)
