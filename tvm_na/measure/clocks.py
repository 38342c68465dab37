"""What times calls: on the CPU the host's clock, on a GPU its own."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

#: Several times the last cache of any GPU so far.
ROTATED_BYTES = 3 * 2**27
_FLUSHED_BYTES = 128 * 2**20  # more than the last cache of most CPUs
#: For so long, for each call, the GPU is kept busy before a sample begins: about 10 microseconds, in which a call is
#: prepared. So calls wait for the GPU, and the GPU for none, however short a kernel is.
_CYCLES_PER_CALL = 20_000


class Clock(Protocol):
    """What times calls."""

    def seconds(self, call: Callable[[], object], count: int) -> float:
        """Seconds per call of ``count`` calls in a row."""

    def flush(self) -> None:
        """Fill the last cache with something else."""


class CpuClock:
    """Times calls that return when their work is done."""

    def seconds(self, call: Callable[[], object], count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - start) / count

    def flush(self) -> None:
        _filler("cpu", _FLUSHED_BYTES).add_(1)


class CudaClock:
    """Times calls of kernels on the current stream, by the GPU's clock."""

    def seconds(self, call: Callable[[], object], count: int) -> float:
        def calls() -> None:
            for _ in range(count):
                call()

        return self._seconds_of(calls, count) / count

    def _seconds_of(self, launch: Callable[[], object], calls: int) -> float:
        """Seconds that the GPU takes for what ``launch`` launches: so many calls, for which it is made to wait."""
        import torch

        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(calls * _CYCLES_PER_CALL)
        start.record()
        launch()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def flush(self) -> None:
        _filler("cuda", ROTATED_BYTES).add_(1)


class GraphClock(CudaClock):
    """Times replays of CUDA graphs of calls: what the host does for a call is in nobody's time, however much it is.

    A call must be one that a graph can capture: made once before, and without waiting for the GPU.
    """

    def __init__(self, fewest: int = 1) -> None:
        """``fewest`` calls are in a graph: all of those that rotate."""
        self._fewest = fewest
        self._graphs: dict[tuple[Callable[[], object], int], Any] = {}

    def seconds(self, call: Callable[[], object], count: int) -> float:
        count = max(count, self._fewest)
        graph = self._graphs.get((call, count))
        if graph is None:
            graph = self._graphs[call, count] = _graph_of(call, count)
        return self._seconds_of(graph.replay, count) / count


def _graph_of(call: Callable[[], object], count: int) -> Any:
    """A CUDA graph of so many calls, replayed once."""
    import torch

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(count):
            call()
    graph.replay()
    return graph


@functools.lru_cache(maxsize=1)
def _filler(device: str, size: int) -> Tensor:
    import torch

    return torch.zeros(size, dtype=torch.uint8, device=device)


def clock_of(device: str) -> Clock:
    """The clock of a device by PyTorch's name, ``cpu``, ``cuda:0``, or of wasmtime, ``wasm``."""
    return CudaClock() if device.startswith("cuda") else CpuClock()
