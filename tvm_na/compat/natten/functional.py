"""``natten.functional``: the operators of every release from 0.14 on."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tvm_na import functional
from tvm_na.compat.natten import context, unfused
from tvm_na.compat.natten.dense import attention
from tvm_na.compat.natten.fused import na1d, na2d, na3d, neighborhood_attention_generic
from tvm_na.compat.natten.ignored import ignore_all
from tvm_na.compat.natten.unfused import *  # noqa: F403


def merge_attentions(
    outputs: Sequence[Tensor],
    lse_tensors: Sequence[Tensor],
    torch_compile: bool = True,
    use_autograd_fix: bool = True,
) -> tuple[Tensor, Tensor]:
    """:func:`tvm_na.merge_attentions`, whose gradients are those of its formula; the switches are ignored.

    Args:
        outputs: At least two of ``[batch, *spatial, heads, head_dim_v]``.
        lse_tensors: Their log-sum-exps, ``[batch, *spatial, heads]``.

    Returns:
        The merged output and log-sum-exp, in the dtypes of the first ones.

    Raises:
        ValueError: for fewer than two outputs, or numbers or shapes that do not fit.
    """
    switches = {"torch_compile": torch_compile, "use_autograd_fix": use_autograd_fix}
    ignore_all(switches, dict.fromkeys(switches, True))
    return functional.merge_attentions(outputs, lse_tensors)


#: What is here too of :mod:`tvm_na.compat.natten.context`.
_SWITCHES = (
    *("has_cuda", "has_half", "has_bfloat", "has_gemm", "has_tf32_gemm", "has_fp32_gemm", "has_fp64_gemm"),
    *(f"{verb}_{what}" for verb in ("enable", "disable") for what in ("gemm_na", "tf32", "tiled_na")),
)
globals().update({name: getattr(context, name) for name in _SWITCHES})

__all__ = [
    "attention",
    "merge_attentions",
    "na1d",
    "na2d",
    "na3d",
    "neighborhood_attention_generic",
    *_SWITCHES,
    *unfused.__all__,
]
