"""What this machine can do at best, as PyTorch gets it, and what that means for a problem: its bound.

Products: ``torch.mm`` of two 1024x1024 matrices. Transfers: a copy and a sum of arrays, bytes read and written, for
working sets from what fits into a core's own cache to what fits into none. Each is the fastest of many samples.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tvm_na.measure.timing import measure
from tvm_na.problems.registry import Problem
from tvm_na.records.write import now
from tvm_na.targets.target import cpu_name

if TYPE_CHECKING:
    import torch

MATMUL_SIZE = 1024
#: Bytes of the working sets for which transfers are measured, beside one that no cache holds.
WORKING_SETS = (2**18, 2**20, 2**22, 2**24)
_MIN_MEMORY = 2**28


@dataclass(frozen=True)
class Rates:
    """What a machine can do.

    Attributes:
        load: Processes that computed over the minute before; with any, rates come out too low.
        flops: Useful operations per second of a matrix product, by dtype and number of threads.
        bandwidth: Bytes per second, by number of threads and bytes of the working set; the largest working set is
            in memory.
    """

    cpu: str
    date: str
    load: float
    flops: dict[str, dict[int, float]]
    bandwidth: dict[int, dict[int, float]]

    def covers(self, problem: Problem, threads: int) -> bool:
        """Whether :func:`bound_of` can be asked."""
        return threads in self.flops.get(problem.accum_dtype, {}) and threads in self.bandwidth

    def to_json(self) -> str:
        """A JSON text."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_file(cls, file: Path) -> Rates:
        """Rates that :meth:`to_json` wrote; ValueError if there is no such file, or it holds something else."""
        try:
            loaded = json.loads(file.read_text(encoding="utf-8"))
            flops = {str(dtype): _by_int(rates) for dtype, rates in loaded["flops"].items()}
            bandwidth = {int(threads): _by_int(rates) for threads, rates in loaded["bandwidth"].items()}
            if not all(bandwidth.values()) or any(rates.keys() != bandwidth.keys() for rates in flops.values()):
                raise ValueError("required products and transfers for the same numbers of threads")
            return cls(str(loaded["cpu"]), str(loaded["date"]), float(loaded["load"]), flops, bandwidth)
        except FileNotFoundError as error:
            raise ValueError(f"rates: required a file that an earlier report wrote, got {file}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"rates: required what an earlier report wrote, got {file}: {error!r}") from error


def _by_int(rates: dict[str, float]) -> dict[int, float]:
    found = {int(key): float(rate) for key, rate in rates.items()}
    if not all(rate > 0 and math.isfinite(rate) for rate in found.values()):
        raise ValueError(f"required rates > 0, got {found}")
    return found


@dataclass(frozen=True)
class Bound:
    """What a problem takes at least, in seconds, on a machine of some :class:`Rates`.

    Attributes:
        bytes: Of all tensors but the scale, each once.
        products: Seconds of a matrix product of as many operations.
        transfers: Seconds to move the bytes, within the caches if they hold them.
        from_memory: Seconds to move the bytes from and to memory, as if no cache held them.
    """

    flops: int
    bytes: int
    products: float
    transfers: float
    from_memory: float

    @property
    def seconds(self) -> float:
        """The longer of products and transfers."""
        return max(self.products, self.transfers)

    @property
    def binds(self) -> str:
        """Which of them it is."""
        return "products" if self.products >= self.transfers else "transfers"


def bound_of(problem: Problem, threads: int, rates: Rates, cold: bool = False, batch: int = 1) -> Bound:
    """The bound of a problem; ``cold``: where caches are emptied before each call, so that all comes from memory.

    Raises:
        ValueError: ``rates`` has no such threads or no such dtype.
    """
    if not rates.covers(problem, threads):
        raise ValueError(f"rates: required rates of {problem.accum_dtype} with {threads} threads, got {rates}")
    flops, moved, bandwidth = problem.useful_flops * batch, problem.bytes * batch, rates.bandwidth[threads]
    memory = bandwidth[max(bandwidth)]
    # What holds a larger working set holds this one.
    within = memory if cold else max((rate for size, rate in bandwidth.items() if size >= moved), default=memory)
    products = flops / rates.flops[problem.accum_dtype][threads]
    return Bound(flops, moved, products, moved / within, moved / memory)


def measure_rates(dtypes: Collection[str], threads: Collection[int], rounds: int = 20) -> Rates:
    """Measure this machine with these numbers of threads; takes a few seconds for each."""
    load = os.getloadavg()[0]
    flops: dict[str, dict[int, float]] = {dtype: {} for dtype in sorted(dtypes)}
    bandwidth: dict[int, dict[int, float]] = {}
    for count in sorted(threads):
        with _torch_threads(count):
            for dtype, rates in flops.items():
                rates[count] = _matmul_rate(dtype, rounds)
            sizes = (*WORKING_SETS, _memory_size())
            bandwidth[count] = {size: _transfer_rate(size, rounds) for size in sizes}
    return Rates(cpu_name(), now(), load, flops, bandwidth)


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _fastest(call: Callable[[], object], rounds: int) -> float:
    return measure({"call": call}, rounds=rounds, sample_time=2e-3, warmup_time=0.02)["call"].minimum


def _matmul_rate(dtype: str, rounds: int) -> float:
    import torch

    generator = torch.Generator().manual_seed(0)
    size = (MATMUL_SIZE, MATMUL_SIZE)
    a, b = (torch.randn(size, generator=generator, dtype=getattr(torch, dtype)) for _ in range(2))
    out = torch.empty_like(a)
    # More samples than of transfers: it is what binds, and the longer it takes, the rarer a sample is undisturbed.
    return 2 * MATMUL_SIZE**3 / _fastest(lambda: torch.mm(a, b, out=out), 3 * rounds)


def _transfer_rate(size: int, rounds: int) -> float:
    import torch

    def arrays(count: int) -> list[torch.Tensor]:
        return [torch.ones(size // (4 * count)) for _ in range(count)]

    source, copy = arrays(2)
    copying = _fastest(lambda: copy.copy_(source), rounds)
    a, b, total = arrays(3)
    return size / min(copying, _fastest(lambda: torch.add(a, b, out=total), rounds))


def _memory_size() -> int:
    """Bytes of a working set that no cache holds."""
    return max(_MIN_MEMORY, 4 * last_cache_bytes())


def last_cache_bytes() -> int:
    """Bytes of the largest cache, as Linux tells; 0 where it does not."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    found = [0]
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text(encoding="ascii").strip()
        number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "")
        if number.isdecimal():
            found.append(int(number) * units.get(unit, 1))
    return max(found)
