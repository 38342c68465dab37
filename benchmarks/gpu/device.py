"""The device that steps run on, as they see it: a GPU by CUDA, or one that a rehearsal pretends."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.machine import machine_of
from benchmarks.peers import PEERS, Peer
from tvm_na.functional import Backend
from tvm_na.jit import runtime
from tvm_na.jit.scratch import with_scratch
from tvm_na.measure import cuda
from tvm_na.measure.clocks import Clock, CudaClock, GraphClock
from tvm_na.problems.registry import Problem
from tvm_na.te import ENTRY

#: Where NVIDIA's tools lie when they are not on PATH.
_TOOLKITS = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer", "/opt/nvidia/nsight-compute")


class Device(Protocol):
    """What differs between a GPU and a pretended one.

    Attributes:
        name: PyTorch's.
        batch: Samples of a large batch.
        gathered: float64 numbers that a reference may gather: where they are more, some queries are compared.
        backend: How models attend.
        peers: What the operator is compared with.
    """

    name: str
    batch: int
    gathered: int
    backend: Backend
    peers: tuple[Peer, ...]

    def start(self) -> None:
        """Make this process use it; an error says that it does not work."""

    def works(self) -> bool:
        """Whether this process can still use it."""

    def about(self) -> dict[str, Any]:
        """Device, driver, date, versions."""

    def kernel(self, file: Path, problem: Problem) -> Callable[..., None]:
        """The kernel in a library, as a function of inputs and outputs."""

    def clock(self, replayed: int = 0) -> Clock:
        """Its clock; for that many calls or more of a CUDA graph, where so many are to be ``replayed``."""

    def scaled(self, size: int) -> int:
        """A size of something that is measured, as it is here."""

    def stream(self) -> Any:
        """A context in which calls go to another stream, that waits for what was launched and is waited for."""

    def delay(self) -> None:
        """Keep the current stream busy for some hundredths of a second."""

    def captured(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """A function that replays ``call``, and gives what it gave: the same tensors each time."""

    def marked(self) -> Any:
        """A context around what a profiler is to see, that ends when the device has done it."""

    def tool(self, name: str) -> Path | None:
        """A program of NVIDIA's; None if it is not there."""


class Cuda:
    """The first GPU."""

    name, batch, gathered = "cuda:0", 128, 2**29
    backend, peers = Backend.COMPILED, PEERS["cuda"]

    def start(self) -> None:
        cuda.prepare(self.name)

    def works(self) -> bool:
        return cuda.works()

    def about(self) -> dict[str, Any]:
        return machine_of("cuda")

    def kernel(self, file: Path, problem: Problem) -> Callable[..., None]:
        return with_scratch(runtime.load(file, ENTRY, "cuda"), problem)

    def clock(self, replayed: int = 0) -> Clock:
        return GraphClock(replayed) if replayed else CudaClock()

    def scaled(self, size: int) -> int:
        return size

    @contextlib.contextmanager
    def stream(self) -> Any:
        side, current = torch.cuda.Stream(), torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            yield
        current.wait_stream(side)

    def delay(self) -> None:
        torch.cuda._sleep(50_000_000)

    def captured(self, call: Callable[[], Any]) -> Callable[[], Any]:
        with self.stream():
            call()  # what is made once is made before
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = call()

        def replay() -> Any:
            graph.replay()
            return out

        return replay

    @contextlib.contextmanager
    def marked(self) -> Any:
        torch.cuda.synchronize()
        torch.cuda.cudart().cudaProfilerStart()
        yield
        torch.cuda.synchronize()
        torch.cuda.cudart().cudaProfilerStop()

    def tool(self, name: str) -> Path | None:
        found = shutil.which(name) or shutil.which(name, path=os.pathsep.join(_TOOLKITS))
        return None if found is None else Path(found)
