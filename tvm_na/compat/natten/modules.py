"""``NeighborhoodAttention1D``, ``2D`` and ``3D`` with the arguments of every release of NATTEN."""

from __future__ import annotations

from typing import Any, ClassVar

from tvm_na import nn as modules
from tvm_na.compat.natten import module_signatures as module_calls
from tvm_na.compat.natten.signatures import Reading, read


class _AnyRelease(modules._NeighborhoodAttention):
    readings: ClassVar[tuple[Reading, ...]]

    def __init__(self, *args: Any, **named: Any) -> None:
        meaning = read(
            type(self).__name__,
            self.readings,
            args,
            named,
            module_calls.check(self.rank),
            newest_wins="rel_pos_bias",
        )
        super().__init__(**meaning)


class NeighborhoodAttention1D(_AnyRelease, modules.NeighborhoodAttention1D):
    """Neighborhood attention over ``[batch, length, embed_dim]``; see :class:`NeighborhoodAttention2D`."""

    readings = module_calls.READINGS


class NeighborhoodAttention2D(_AnyRelease, modules.NeighborhoodAttention2D):
    """Neighborhood attention over ``[batch, height, width, embed_dim]``.

    A :class:`tvm_na.nn.NeighborhoodAttention2D` that takes the arguments of every release of NATTEN:

    - 0.21: embed_dim, num_heads, kernel_size, stride=1, dilation=1, is_causal=False, qkv_bias=True, qk_scale=None,
      proj_drop=0.0; 0.20 calls the first one dim;
    - 0.17: dim, num_heads, kernel_size, dilation=1, is_causal=False, rel_pos_bias=False, qkv_bias=True,
      qk_scale=None, attn_drop=0.0, proj_drop=0.0, use_experimental_ops=False;
    - 0.14.5 to 0.15: dim, num_heads, kernel_size, dilation=1, bias=True, qkv_bias=True, qk_scale=None,
      attn_drop=0.0, proj_drop=0.0, where bias is that of relative positions;
    - 0.14.1 to 0.14.4: dim, kernel_size, num_heads, qkv_bias=True, qk_scale=None, attn_drop=0.0, proj_drop=0.0,
      dilation=None, always with a bias of relative positions.

    What releases read differently is an error, unless :func:`~tvm_na.compat.natten.assume_release` says which
    release counts. Of a call that fits 0.21 and differs from older releases by their default of a bias only, 0.21's
    reading is taken, with a warning.

    Parameters are ``qkv``, ``rpb`` and ``proj``, as in all of them. Maps smaller than ``kernel_size * dilation`` are
    padded, as up to 0.15. In training, ``attn_drop`` drops weights, as in NATTEN's unfused attention.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """

    readings = module_calls.READINGS


class NeighborhoodAttention3D(_AnyRelease, modules.NeighborhoodAttention3D):
    """Neighborhood attention over ``[batch, depth, height, width, embed_dim]``; see :class:`NeighborhoodAttention2D`.

    0.15: dim, num_heads, kernel_size, kernel_size_d=None, dilation=1, dilation_d=None, bias=True, qkv_bias=True,
    qk_scale=None, attn_drop=0.0, proj_drop=0.0.
    """

    readings = module_calls.READINGS_3D


class NeighborhoodAttention(NeighborhoodAttention2D):
    """:class:`NeighborhoodAttention2D` as 0.14.1 to 0.14.4 had it, its only releases."""

    readings = module_calls.READINGS_0_14
