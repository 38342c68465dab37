"""What the benchmarks share: threads, JSON and file names."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tvm_na import settings
from tvm_na.measure.timing import machine

RESULTS = Path(__file__).parent / "results"


def use_all_cores() -> int:
    """Let PyTorch and our kernels use every core, whatever the environment says; their number."""
    cores = settings.available_cores()
    torch.set_num_threads(cores)
    os.environ["TVM_NA_NUM_THREADS"] = str(cores)
    return cores


def load_before(console: Console) -> float:
    """Processes that computed over the last minute; says so when there were any."""
    load = os.getloadavg()[0]
    if load > 0.5:
        console.print(
            f"warning: the machine is not idle (load {load:.1f} over the last minute); that slows whoever waits at "
            "OpenMP barriers most, so a speedup over PyTorch may come out too high",
            style="yellow",
        )
    return load


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a result with the machine it was measured on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine(), **content}, indent=1) + "\n", encoding="utf-8")
