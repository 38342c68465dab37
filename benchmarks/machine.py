"""The machine that a result was measured on."""

from __future__ import annotations

import subprocess
from typing import Any

import torch

from tvm_na.measure.timing import machine


def driver_version() -> str | None:
    """The version of NVIDIA's driver, such as ``580.159.03``; None where ``nvidia-smi`` does not tell."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return told.splitlines()[0].strip() if told.strip() else None


def machine_of(device: str) -> dict[str, Any]:
    """``machine()``; on a GPU also its name, capability, memory, driver and CUDA."""
    if device == "cpu":
        return machine()
    about = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        **machine(),
        "device": about.name,
        "capability": f"{about.major}.{about.minor}",
        "memory_bytes": about.total_memory,
        "driver": driver_version(),
        "cuda": torch.version.cuda,
    }
