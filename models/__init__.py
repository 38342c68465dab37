"""Models built on neighborhood attention, with the attribute names of their authors' checkpoints."""

from __future__ import annotations

from tvm_na.models.attention_maps import attention_maps
from tvm_na.models.base import NAModel
from tvm_na.models.checkpoint import LoadReport, load_checkpoint
from tvm_na.models.dinat_s import DiNATs
from tvm_na.models.flops import flops
from tvm_na.models.isotropic import NATIsotropic, ViTRPB
from tvm_na.models.nat import NAT
from tvm_na.models.problems import problems_of, training_problems_of
from tvm_na.models.registry import create_model, list_models

__all__ = [
    "NAT",
    "DiNATs",
    "LoadReport",
    "NAModel",
    "NATIsotropic",
    "ViTRPB",
    "attention_maps",
    "create_model",
    "flops",
    "list_models",
    "load_checkpoint",
    "problems_of",
    "training_problems_of",
]
