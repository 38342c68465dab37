"""Launches kernels of a package for a tool: ``python -m benchmarks.gpu.launch DEVICE FOLDER RESULTS BATCH NUMBER...``.

Each is launched once, named before, on random inputs that are made on the CPU, so that a tool sees few other kernels;
one that reports what is marked sees none. Numbers are compared by other steps.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import torch

from benchmarks.gpu import worker
from benchmarks.gpu.cases import kernel_of
from benchmarks.gpu.tools import KERNEL

_SECONDS = 60


def main(device: str, folder: str, results: str, batch: str, *numbers: str) -> None:
    """See above."""
    signal.alarm(_SECONDS)  # if the tool that started it was ended
    worker.prepare(device, Path(folder), Path(results))
    for number in map(int, numbers):
        kernel, function = worker.here().folder.kernel(number), kernel_of(number)
        print(KERNEL + worker.here().folder.name(number), flush=True)
        tensors = [
            torch.randn(a.shape_for(int(batch)), dtype=getattr(torch, a.dtype)).to(worker.here().device.name)
            for a in kernel.problem.arguments()
        ]
        with worker.here().device.marked():
            function(*tensors)


if __name__ == "__main__":
    main(*sys.argv[1:])
