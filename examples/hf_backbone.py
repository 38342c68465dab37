"""NAT as a backbone class of Hugging Face transformers: what ``AutoBackbone`` and every ``backbone_config`` take.

Importing this module registers :class:`NatConfig` and :class:`NatBackbone`. Needs transformers 5.23 or newer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from tvm_na.models import NAT, load_checkpoint
from tvm_na.models.checkpoint import LoadReport
from tvm_na.models.layers import NABlock, init_weights
from tvm_na.models.registry import get_spec
from tvm_na.nn import NeighborhoodAttention2D


class NatConfig(BackboneConfigMixin, PreTrainedConfig):
    """Arguments of :class:`tvm_na.models.NAT`, and which stages a backbone returns.

    ``out_indices`` counts stages from 0 as NAT does (there is no stem before them), ``out_features`` names them
    ``stage1``, ``stage2`` and so on. With neither, the last stage alone is returned.
    """

    model_type = "tvm_na_nat"  # transformers once had a model of type "nat", with parameters of other names

    embed_dim: int = 64
    depths: list[int] | tuple[int, ...] = (3, 4, 6, 5)
    num_heads: list[int] | tuple[int, ...] = (2, 4, 8, 16)
    kernel_size: int | list[int] | tuple[int, ...] = 7
    dilations: Any = None
    mlp_ratio: float = 3.0
    drop_path_rate: float = 0.2
    layer_scale: float | None = None
    num_channels: int = 3
    backend: str = "auto"
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.stage_names = [f"stage{number}" for number in range(1, len(self.depths) + 1)]
        self.set_output_features_output_indices(
            out_features=kwargs.pop("out_features", None), out_indices=kwargs.pop("out_indices", None)
        )
        super().__post_init__(**kwargs)

    @classmethod
    def of(cls, name: str, out_indices: Sequence[int] = (0, 1, 2, 3), **overrides: Any) -> NatConfig:
        """The config of a NAT or DiNAT of :func:`tvm_na.models.list_models`; ValueError for another name."""
        spec = get_spec(name)
        if spec.architecture is not NAT:
            raise ValueError(f"name: required a NAT or DiNAT, got {name!r}")
        return cls(**{**spec.arguments(), "out_indices": list(out_indices), **overrides})


class NatBackbone(BackboneMixin, PreTrainedModel):
    """NAT that returns a map per stage, as transformers' detectors and segmenters want their backbones.

    Takes ``pixel_values`` ``[B, num_channels, H, W]`` of any size. ``feature_maps`` are contiguous
    ``[B, channels[i], H_i, W_i]``; stage 1 has a quarter of the height and width, rounded up, each next one half.
    """

    config: NatConfig
    config_class = NatConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    has_attentions = False  # they are never in memory

    def __init__(self, config: NatConfig) -> None:
        super().__init__(config)
        kernel_size = config.kernel_size
        self.num_features = [config.embed_dim << stage for stage in range(len(config.depths))]
        self.nat = NAT(
            embed_dim=config.embed_dim,
            depths=config.depths,
            num_heads=config.num_heads,
            in_chans=config.num_channels,
            kernel_size=kernel_size if isinstance(kernel_size, int) else tuple(kernel_size),
            dilations=config.dilations,
            mlp_ratio=config.mlp_ratio,
            drop_path_rate=config.drop_path_rate,
            layer_scale=config.layer_scale,
            features_only=True,
            out_indices=[index % len(config.depths) for index in config.out_indices],
            backend=config.backend,
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """As NAT does it. transformers calls this again for what a checkpoint of ``from_pretrained`` lacks."""
        if isinstance(module, (nn.Conv2d, nn.LayerNorm)):
            module.reset_parameters()
        elif isinstance(module, NeighborhoodAttention2D):
            nn.init.trunc_normal_(module.rpb, std=0.02)
        elif isinstance(module, NABlock) and self.config.layer_scale is not None:
            nn.init.constant_(module.gamma1, self.config.layer_scale)
            nn.init.constant_(module.gamma2, self.config.layer_scale)
        else:
            init_weights(module)

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BackboneOutput | tuple[tuple[Tensor, ...]]:
        """The maps of ``out_features``, fine to coarse; with ``return_dict=False`` in a tuple.

        Raises:
            ValueError: ``output_hidden_states`` is true: maps before their norm are not kept.
        """
        if output_hidden_states:
            raise ValueError("output_hidden_states: required False, NAT as a backbone has feature_maps alone")
        output = BackboneOutput(feature_maps=tuple(self.nat(pixel_values)))
        return output.to_tuple() if return_dict is False else output

    def load(self, weights: Path) -> LoadReport:
        """Load a checkpoint of NAT (the authors', Hugging Face's or ours); what had to be adapted is in the report.

        Raises:
            FileNotFoundError, ValueError: as :func:`tvm_na.models.load_checkpoint`.
        """
        return load_checkpoint(self.nat, weights)

    def freeze(self) -> None:
        """Learn nothing from now on. Nothing here then needs a gradient, so compiled kernels serve training too."""
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> NatBackbone:
        """As usual, but a frozen backbone stays in evaluation mode (no stochastic depth)."""
        return super().train(mode and any(parameter.requires_grad for parameter in self.parameters()))


AutoConfig.register(NatConfig.model_type, NatConfig, exist_ok=True)
AutoBackbone.register(NatConfig, NatBackbone, exist_ok=True)
