"""Calls that every door must refuse, with the argument that its message names: tensors, windows, additional keys."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.helpers import bad, random_additional, random_inputs
from tvm_na.problems.attention import NAProblem

CALL = NAProblem.make((8, 9), 3, 4, 8, heads_kv=2, head_dim_v=6)


def zeros(*shape: int, **options: Any) -> torch.Tensor:
    return torch.zeros(*shape, **options)


def arguments(dtype: torch.dtype = torch.float32, **changes: Any) -> dict[str, Any]:
    """The arguments of a good call, but for ``changes``."""
    query, key, value, _ = random_inputs(CALL, batch=2, seed=0, dtype=dtype)
    return {"query": query, "key": key, "value": value, "kernel_size": 3, **changes}


#: On a map of 8 x 9, where nothing else is said a window of 3.
BAD_WINDOWS = [
    bad("kernel_size", True, TypeError, "integer", "bool True"),
    bad("kernel_size", 3.0, TypeError, "integer", "float 3.0"),
    bad("kernel_size", "3", TypeError, "integer", "str '3'"),
    bad("kernel_size", None, TypeError, "integer", "NoneType None"),
    bad("kernel_size", 0, ValueError, ">= 1", "got 0"),
    bad("kernel_size", -3, ValueError, ">= 1", "got -3"),
    bad("kernel_size", (3,), ValueError, "2 values", "got 1: (3,)"),
    bad("kernel_size", (3, 3, 3), ValueError, "2 values", "got 3: (3, 3, 3)"),
    bad("kernel_size", (3, 3.5), TypeError, "integer", "float 3.5"),
    bad("kernel_size", (3, False), TypeError, "integer", "bool False"),
    bad("kernel_size", 9, ValueError, "kernel_size * dilation <= size on axis 0", "9 * 1 = 9 > 8"),
    bad("kernel_size", (3, 4), ValueError, "on axis 1", "4 * 3 = 12 > 9", name="dilated", dilation=(1, 3)),
    bad("stride", True, TypeError, "integer", "bool True"),
    bad("stride", 0, ValueError, ">= 1", "got 0"),
    bad("stride", (1, -1), ValueError, ">= 1", "got -1"),
    bad("stride", (1, 4), ValueError, "stride <= kernel_size on axis 1", "4 > 3"),
    bad("stride", [1, 1, 1], ValueError, "2 values", "got 3"),
    bad("dilation", 1.5, TypeError, "integer", "float 1.5"),
    bad("dilation", 0, ValueError, ">= 1", "got 0"),
    bad("dilation", (), ValueError, "2 values", "got 0: ()"),
    bad("dilation", (2, True), TypeError, "integer", "bool True"),
    bad("is_causal", 1, TypeError, "bool", "int 1"),
    bad("is_causal", None, TypeError, "bool", "NoneType None"),
    bad("is_causal", (True, 0), TypeError, "bool", "int 0"),
    bad("is_causal", (True,), ValueError, "2 values", "got 1: (True,)"),
    bad("is_causal", "no", TypeError, "bool", "str 'no'"),
    bad("kernel_size", np.array([3, 3]), TypeError, "integer", name="numpy"),
    bad("kernel_size", (3, [3]), TypeError, "integer", name="nested"),
    bad("stride", 1.5, TypeError, "integer", "float 1.5"),
]
SPARSE = zeros(2, 8, 9, 4, 8).to_sparse()
BAD_CALLS = [
    bad("query", None, TypeError, "torch.Tensor", "NoneType"),
    bad("query", [[1.0]], TypeError, "torch.Tensor", "list", name="list"),
    bad("key", zeros(2, 8, 9, 2, 8).numpy(), TypeError, "torch.Tensor", "ndarray", name="numpy"),
    bad("query", SPARSE, TypeError, "strided", "torch.sparse_coo", name="sparse"),
    bad("value", SPARSE, TypeError, "strided", "torch.sparse_coo", name="sparse"),
    bad("query", zeros(8, 9, 4, 8), ValueError, "5 dimensions", "(8, 9, 4, 8)", name="rank-4"),
    bad("key", zeros(2, 72, 2, 8), ValueError, "5 dimensions", "(2, 72, 2, 8)", name="rank-4"),
    bad("value", zeros(1, 2, 8, 9, 2, 6), ValueError, "5 dimensions", "(1, 2, 8, 9, 2, 6)", name="rank-6"),
    bad("query", zeros(2, 8, 9, 4, 8, dtype=torch.int32), TypeError, "bfloat16", "got int32", name="int32"),
    bad("query", zeros(2, 8, 9, 4, 8, dtype=torch.bool), TypeError, "bfloat16", "got bool", name="bool"),
    bad("query", zeros(2, 8, 9, 4, 8, dtype=torch.complex64), TypeError, "float16", "got complex64", name="complex"),
    bad("key", zeros(2, 8, 9, 2, 8).half(), TypeError, "query's dtype torch.float32", "torch.float16", name="half"),
    bad("value", zeros(2, 8, 9, 2, 6).double(), TypeError, "query's dtype torch.float32", "float64", name="double"),
    bad("key", zeros(2, 8, 9, 2, 8, device="meta"), ValueError, "query's device cpu", "got meta", name="meta"),
    bad("value", zeros(2, 8, 9, 2, 6, device="meta"), ValueError, "query's device cpu", "got meta", name="meta"),
    bad("query", zeros(2, 8, 9, 0, 8), ValueError, ">= 1", "(2, 8, 9, 0, 8)", name="no-heads"),
    bad("query", zeros(2, 0, 9, 4, 8), ValueError, ">= 1", "(2, 0, 9, 4, 8)", name="no-rows"),
    bad("query", zeros(2, 8, 9, 4, 0), ValueError, ">= 1", "(2, 8, 9, 4, 0)", name="no-head_dim"),
    bad("query", zeros(2, 8, 0, 4, 8), ValueError, ">= 1", "(2, 8, 0, 4, 8)", name="no-width"),
    bad("key", zeros(2, 8, 9, 0, 8), ValueError, ">= 1", "(2, 8, 9, 0, 8)", name="no-heads"),
    bad("value", zeros(2, 8, 9, 2, 0), ValueError, ">= 1", "(2, 8, 9, 2, 0)", name="no-head_dim"),
    bad("key", zeros(3, 8, 9, 2, 8), ValueError, "(2, 8, 9, 2, 8)", "got (3, 8, 9, 2, 8)", name="batch"),
    bad("key", zeros(2, 9, 8, 2, 8), ValueError, "(2, 8, 9, 2, 8)", "got (2, 9, 8, 2, 8)", name="spatial"),
    bad("key", zeros(2, 8, 9, 2, 6), ValueError, "(2, 8, 9, 2, 8)", "got (2, 8, 9, 2, 6)", name="head_dim"),
    bad("value", zeros(1, 8, 9, 2, 6), ValueError, "(2, 8, 9, 2, 6)", "got (1, 8, 9, 2, 6)", name="batch"),
    bad("value", zeros(2, 8, 8, 2, 6), ValueError, "(2, 8, 9, 2, 6)", "got (2, 8, 8, 2, 6)", name="spatial"),
    bad("value", zeros(2, 8, 9, 4, 6), ValueError, "(2, 8, 9, 2, 6)", "got (2, 8, 9, 4, 6)", name="heads"),
    bad("return_lse", 1, TypeError, "bool", "1"),
    bad("rpb", 0.5, TypeError, "torch.Tensor", "float"),
    bad("rpb", zeros(4, 25), ValueError, "3 dimensions", "(4, 25)", name="rank-2"),
    bad("rpb", zeros(4, 5, 3), ValueError, "(4, 5, 5)", "got (4, 5, 3)", name="axis"),
    bad("rpb", zeros(2, 5, 5), ValueError, "(4, 5, 5)", "got (2, 5, 5)", name="heads"),
    bad("rpb", zeros(4, 5, 5).half(), TypeError, "query's dtype torch.float32", "got torch.float16", name="half"),
    bad("rpb", zeros(4, 5, 5, device="meta"), ValueError, "query's device cpu", "got meta", name="meta"),
    bad("rpb", zeros(4, 5, 5).to_sparse(), TypeError, "strided", "torch.sparse_coo", name="sparse"),
]
KEYS, VALUES = random_additional(CALL, batch=2, extra=5, seed=0)
BAD_ADDITIONAL = [
    bad("additional_keys", None, ValueError, "together with its counterpart", "got None"),
    bad("additional_values", None, ValueError, "together with its counterpart", "got None"),
    bad("additional_keys", 1.0, TypeError, "torch.Tensor", "float"),
    bad("additional_values", [1.0], TypeError, "torch.Tensor", "list"),
    bad("additional_keys", zeros(2, 5, 8), ValueError, "4 dimensions", "(2, 5, 8)", name="rank-3"),
    bad("additional_values", zeros(2, 1, 5, 2, 6), ValueError, "4 dimensions", "(2, 1, 5, 2, 6)", name="rank-5"),
    bad("additional_keys", zeros(1, 5, 2, 8), ValueError, "(2, 5, 2, 8)", "got (1, 5, 2, 8)", name="batch"),
    bad("additional_keys", zeros(2, 5, 4, 8), ValueError, "(2, 5, 2, 8)", "got (2, 5, 4, 8)", name="heads"),
    bad("additional_keys", zeros(2, 5, 2, 6), ValueError, "(2, 5, 2, 8)", "got (2, 5, 2, 6)", name="head_dim"),
    bad("additional_values", zeros(2, 4, 2, 6), ValueError, "(2, 5, 2, 6)", "got (2, 4, 2, 6)", name="extra"),
    bad("additional_values", zeros(2, 5, 2, 8), ValueError, "(2, 5, 2, 6)", "got (2, 5, 2, 8)", name="head_dim"),
    bad("additional_keys", KEYS.half(), TypeError, "query's dtype torch.float32", "torch.float16", name="half"),
    bad("additional_values", VALUES.long(), TypeError, "query's dtype torch.float32", "torch.int64", name="int"),
    bad("additional_values", VALUES.to("meta"), ValueError, "query's device cpu", "got meta", name="meta"),
    bad("additional_keys", KEYS.to_sparse(), TypeError, "strided", "torch.sparse_coo", name="sparse"),
]
