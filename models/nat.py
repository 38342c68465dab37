"""NAT: the Neighborhood Attention Transformer (Hassani et al., arXiv 2204.07143), and with dilations DiNAT.

Attribute names are those of the authors' checkpoints, so that their keys are the keys of ``state_dict()``.
"""

from __future__ import annotations

from tvm_na.models.layers import ConvDownsampler, ConvTokenizer
from tvm_na.models.pyramid import Pyramid


class NAT(Pyramid):
    """Neighborhood Attention Transformer (arXiv 2204.07143); with ``dilations``, DiNAT (arXiv 2209.15001).

    Overlapping convolutions make the tokens and reduce the maps. Arguments, inputs and outputs are those of
    :class:`Pyramid`; ``embed_dim`` must be even.
    """

    stages_name = "levels"
    tokenizer, downsampler = ConvTokenizer, ConvDownsampler
