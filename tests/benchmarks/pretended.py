"""A pretended GPU for the nine-minute run: tensors are on the CPU, kernels are the reference, times are invented.

A folder says in ``faults.json`` which libraries do not do what they should. Also the device of a longer rehearsal:
``python -m benchmarks.gpu FOLDER --output OUT --device tests.benchmarks.pretended:Pretended``.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import cases
from benchmarks.gpu.plan import PLANS, small_plan
from benchmarks.gpu.worker import here
from benchmarks.peers import PEERS, Peer
from tests.ops.pretended_gpu import results
from tvm_na.functional import Backend
from tvm_na.jit.scratch import with_scratch
from tvm_na.measure import cuda
from tvm_na.measure.timing import machine
from tvm_na.models import registry
from tvm_na.problems.registry import Problem

#: Of libraries, by their content.
FAULTS = "faults.json"


#: A NAT that is none.
TINY = registry.ModelSpec("nat_rehearsed", 16, (1, 1, 1, 1), (1, 2, 4, 8), 2.0, 0.0, 0, kernel_size=3)


def no_peer(*_: Any) -> Any:
    raise NotImplementedError("this peer is never there")


def rehearsed() -> Any:
    """The small plan, with peers of a CPU and one that does not run."""
    return small_plan(peers=("SDPA", "gather", "broken"), model=TINY.name)


PLANS["rehearsed"] = rehearsed


class Invented:
    """A clock that makes up what calls take, but makes them."""

    def __init__(self) -> None:
        self._random = random.Random(0)

    def seconds(self, call: Callable[[], object], count: int) -> float:
        call()
        return self._random.uniform(1e-3, 2e-3)

    def flush(self) -> None:
        pass


class Pretended:
    """See :class:`benchmarks.gpu.device.Device`."""

    name, batch, backend = "cpu", 4, Backend.REFERENCE
    peers = (*PEERS["cpu"][:2], *(Peer(name, "", no_peer) for name in ("broken", "flex", "flex, tiled", "natten")))

    def __init__(self) -> None:
        self._lost = False
        self._problem: Problem | None = None
        self._results: dict[tuple[int, int], list[torch.Tensor]] = {}

    @property
    def gathered(self) -> int:
        return 2**17 if here().folder.plan.model[0] == TINY.name else 2**29

    def start(self) -> None:
        torch.set_num_threads(1)
        registry.SPECS.setdefault(TINY.name, TINY)
        cuda.ROTATED_BYTES = 1  # of which two sets are made

    def works(self) -> bool:
        return not self._lost

    def about(self) -> dict[str, Any]:
        return {**machine(), "device": "NVIDIA Pretended H200", "driver": "none"}

    def kernel(self, file: Path, problem: Problem) -> Callable[..., None]:
        faults = here().folder.path / FAULTS
        known = json.loads(faults.read_text()) if faults.is_file() else {}
        fault = known.get(file.read_bytes()[:1000].decode(errors="replace"))
        return with_scratch(lambda *tensors: self._run(problem, fault, tensors), problem)

    def _run(self, problem: Problem, fault: str | None, tensors: tuple[torch.Tensor, ...]) -> None:
        if fault == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if fault == "hang":
            time.sleep(1000)
        if fault == "lose":
            self._lost = True
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        outputs = [t for a, t in zip(problem.arguments(), tensors, strict=False) if a.role == "output"]
        for out, found in zip(outputs, self._results_of(problem, tensors), strict=False):
            out.copy_(found)
        if fault == "wrong":
            outputs[0][-1].mul_(1.1)

    def _results_of(self, problem: Problem, tensors: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        """What is right; kept, since a kernel is called with the same tensors many times: a case is always the same."""
        key = tensors[0].data_ptr(), len(tensors[0])
        if problem != self._problem:
            self._problem = problem
            self._results.clear()
        if key not in self._results:
            if cases.is_large(problem):
                self._results[key] = [self._sampled(problem, tensors)]
            else:
                given = dict[str, list[torch.Tensor]]()
                for argument, tensor in zip(problem.arguments(), tensors, strict=False):
                    given.setdefault(argument.role, []).append(tensor)
                scales = [float(t) for t in given.get("scale", [])]
                self._results[key] = list(results(problem, given["input"], *scales))
        return self._results[key]

    def _sampled(self, problem: Any, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Right where it is compared."""
        queries = cases.case_of(problem, 1).queries
        out = torch.zeros_like(tensors[0][..., : problem.head_dim_v])
        out.flatten(1, -3)[-1, queries] = cases.attention_of(problem, tensors, queries).to(out.dtype)
        return out

    def clock(self, replayed: int = 0) -> Invented:
        return Invented()

    def scaled(self, size: int) -> int:
        return max(16, size >> 12)

    def stream(self) -> Any:
        return contextlib.nullcontext()

    def delay(self) -> None:
        pass

    def captured(self, call: Callable[[], Any]) -> Callable[[], Any]:
        out = call()
        return lambda: out.copy_(call())

    def marked(self) -> Any:
        return contextlib.nullcontext()

    def tool(self, name: str) -> Path | None:
        found = here().folder.path / "tools" / name
        return found if found.is_file() else None
