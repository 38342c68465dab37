"""Small models whose every parameter is random, so that a value in the wrong place shows, and files of weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tvm_na.models import NAT, DiNATs, LoadReport, NAModel, NATIsotropic, ViTRPB, load_checkpoint
from tvm_na.nn import NeighborhoodAttention2D

M = TypeVar("M", bound=NAModel)

ISOTROPIC: dict[str, Any] = {"embed_dim": 8, "num_heads": 2, "depth": 3}
FAMILIES: dict[str, tuple[type[NAModel], dict[str, Any]]] = {
    "nat": (NAT, {"embed_dim": 8, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 4, 4), "kernel_size": 3}),
    "dinat_s": (DiNATs, {"embed_dim": 8, "depths": (1, 2), "num_heads": (1, 2), "kernel_size": 3}),
    "nat_isotropic": (NATIsotropic, {**ISOTROPIC, "kernel_size": 3}),
    "vitrpb": (ViTRPB, {**ISOTROPIC, "img_size": 48}),
}


def small(seed: int, family: str = "nat", **arguments: Any) -> Any:
    make, sizes = FAMILIES[family]
    model = make(**{**sizes, "num_classes": 10, "backend": "reference", **arguments}).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.normal_(generator=generator)
    return model


def made(make: Callable[..., M], **arguments: Any) -> M:
    """A model in evaluation mode, drawn with one seed, for the reference and ten classes if nothing else is said."""
    torch.manual_seed(0)
    return make(**{"backend": "reference", "num_classes": 10, **arguments}).eval()


def attentions(model: nn.Module) -> list[NeighborhoodAttention2D]:
    return [module for module in model.modules() if isinstance(module, NeighborhoodAttention2D)]


def loaded(model: NAModel, content: Any, file: Path, **options: Any) -> LoadReport:
    """What was reported when ``content``, or the weights of a model, came out of a file."""
    content = content.state_dict() if isinstance(content, NAModel) else content
    if file.suffix == ".safetensors":
        save_file(content, file)
    else:
        torch.save(content, file)
    return load_checkpoint(model, file, **options)


def assert_same(model: NAModel, wanted: NAModel | dict[str, Tensor]) -> None:
    """A model's weights are those of another one, bit by bit, and in the same order."""
    wanted = wanted.state_dict() if isinstance(wanted, NAModel) else wanted
    assert list(model.state_dict()) == list(wanted)
    for key, value in wanted.items():
        assert torch.equal(model.state_dict()[key], value), key
