"""``natten.utils``: the parts that client code imports."""

from __future__ import annotations

from tvm_na.compat.natten.utils import checks, log, varlen
from tvm_na.compat.natten.utils.checks import (
    check_all_args,
    check_causal_arg,
    check_dilation_arg,
    check_input_size_arg,
    check_kernel_size_arg,
    check_stride_arg,
    get_num_na_weights,
)

__all__ = [
    "check_all_args",
    "check_causal_arg",
    "check_dilation_arg",
    "check_input_size_arg",
    "check_kernel_size_arg",
    "check_stride_arg",
    "checks",
    "get_num_na_weights",
    "log",
    "varlen",
]
