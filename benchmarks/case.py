"""One problem of a benchmark of the operator: its inputs and peers, and what was measured."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from benchmarks.peers import PEERS
from tvm_na.measure.clocks import Clock, GraphClock, clock_of
from tvm_na.measure.cuda import copies_for, rotating
from tvm_na.measure.timing import Timing, interleaved_ratio, measure
from tvm_na.problems.attention import NAProblem
from tvm_na.reference.accuracy import ERROR_BUDGET, relative_error

if TYPE_CHECKING:
    from rich.console import Console

OURS = "tvm_na"
#: Samples of a batch that are compared with the reference.
CHECKED = 2
_STAGES = ((56, 2), (28, 4), (14, 8), (7, 16))

Calls = dict[str, Callable[[], object]]


def stages_of(dtype: str = "float32", bias: bool = False) -> list[NAProblem]:
    """NAT-Tiny's four stages at 224x224, with the bias that its layers have, or without."""
    return [NAProblem.make((n, n), 7, heads, 32, dtype=dtype, bias=bias) for n, heads in _STAGES]


@dataclass
class Case:
    """What was measured for one problem on ``cpu`` or ``cuda``, by candidate.

    Attributes:
        timings: Of candidates with right numbers.
        errors: Relative errors of those that ran.
        unavailable: Why the others did not.
    """

    problem: NAProblem
    batch: int = 1
    device: str = "cpu"
    timings: dict[str, Timing] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    unavailable: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The case in words."""
        p = self.problem
        bias = ", bias" if p.bias else ""
        return f"{p.dtype}, batch {self.batch}, {p.spatial[0]}x{p.spatial[1]}, {p.heads} heads{bias}"

    @property
    def label(self) -> str:
        """Its name in tables, without what all cases on a CPU have in common."""
        p = self.problem
        return f"{p.spatial[0]}x{p.spatial[1]}, {p.heads}" if self.device == "cpu" else self.name

    @property
    def budget(self) -> float:
        """The largest error that is right."""
        return ERROR_BUDGET[self.problem.dtype]

    def is_right(self, name: str) -> bool:
        """Whether a candidate ran and its error is within the budget."""
        return self.errors.get(name, math.inf) <= self.budget

    def ratio(self, numerator: str, denominator: str, by_round: bool) -> float:
        """The time of one candidate over that of another: round by round, or by their medians."""
        one, other = self.timings[numerator], self.timings[denominator]
        return interleaved_ratio(one, other) if by_round else one.median / other.median

    @property
    def best_peer(self) -> str | None:
        """The fastest peer with right numbers, by medians."""
        right = [peer.name for peer in PEERS[self.device] if self.is_right(peer.name)]
        return min(right, key=lambda name: self.timings[name].median, default=None)

    def over_peer(self, by_round: bool = False) -> float | None:
        """Best peer's time over ours; None if our numbers are wrong or there is no peer."""
        best = self.best_peer
        return None if best is None or not self.is_right(OURS) else self.ratio(best, OURS, by_round)

    def draw(self, tensors: int, differentiated: bool = False) -> list[tuple[Tensor, ...]]:
        """Sets of query, key, value and more tensors like them; on a GPU more than its last cache holds.

        ``differentiated``: whether gradients of the first three are wanted.
        """
        torch.manual_seed(0)
        torch.compiler.reset()  # of a function that is compiled for many shapes PyTorch refuses to compile more
        p = self.problem
        shape, dtype = (self.batch, *p.spatial, p.heads, p.head_dim), getattr(torch, p.dtype)
        count = 1 if self.device == "cpu" else copies_for(self.bytes_of(8 if differentiated else 4))
        sets = []
        for _ in range(count):
            drawn = [torch.randn(shape, dtype=dtype, device=self.device) for _ in range(tensors)]
            sets.append(tuple(t.requires_grad_(differentiated and n < 3) for n, t in enumerate(drawn)))
        return sets

    def draw_bias(self) -> Tensor | None:
        """The bias, where the problem has one."""
        p = self.problem
        return torch.randn(p.bias_shape, dtype=getattr(torch, p.dtype), device=self.device) if p.bias else None

    def bytes_of(self, tensors: int) -> int:
        """Bytes of so many tensors like query."""
        p = self.problem
        elements = self.batch * math.prod(p.spatial) * p.heads * p.head_dim
        return tensors * elements * int(getattr(torch, p.dtype).itemsize)

    def add_peers(
        self,
        calls: Calls,
        sets: Sequence[tuple[Tensor, ...]],
        expected: Sequence[Tensor],
        wrap: Callable[[Callable[..., Any]], Callable[..., tuple[Tensor, ...]]],
        rpb: Tensor | None = None,
    ) -> None:
        """Put the peers that run to ``calls``, and note their errors.

        ``sets`` are arguments as ours has them, ``expected`` is what is right of the first samples, ``wrap`` makes
        of an operator what is timed, and ``rpb`` is the bias of all, where the problem has one.
        """
        for peer in PEERS[self.device]:
            try:
                call = wrap(peer.prepare(self.problem, self.device, rpb))
                theirs = [tuple(peer.layout(t.detach()).requires_grad_(t.requires_grad) for t in s) for s in sets]
                found = [peer.back(t, self.problem) for t in call(*theirs[0])]
                self.errors[peer.name] = error_of(found, expected)
                calls[peer.name] = rotating(call, theirs)
            except Exception as error:  # a compiler's failure has no type of its own; it is reported by name
                cause = error.__cause__ or error  # what Dynamo observed, rather than that it did
                self.unavailable[peer.name] = f"{type(cause).__name__}: {cause}".strip().splitlines()[0]

    @property
    def is_replayed(self) -> bool:
        """Whether calls are timed by replays of CUDA graphs: where the host takes longer for one than the GPU."""
        return self.device == "cuda" and self.batch == 1

    def measure(self, calls: Calls, rounds: int, baseline: Calls | None = None) -> None:
        """Time the candidates with right numbers, those without any (which are as right as ours), and the baseline."""
        right = {n: c for n, c in calls.items() if self.errors.get(n, self.errors[OURS]) <= self.budget}
        right |= baseline or {}
        clock, warmup_time = clock_of(self.device), 0.1 if self.device == "cpu" else 1e-2
        if self.is_replayed:
            clock, warmup_time = GraphClock(copies_for(self.bytes_of(4))), 1e-3
            self._leave_out_what_cannot_be_captured(right, clock)
        if right:
            times = {"sample_time": 0.02 if self.device == "cpu" else 2e-3, "warmup_time": warmup_time}
            self.timings = measure(right, rounds=rounds, clock=clock, **times)

    def _leave_out_what_cannot_be_captured(self, right: Calls, clock: Clock) -> None:
        """Take peers out of ``right`` of whose calls there is no CUDA graph, and say so."""
        for name in [peer.name for peer in PEERS[self.device] if peer.name in right]:
            try:
                clock.seconds(right[name], 1)
            except RuntimeError as error:  # PyTorch's class for CUDA's errors derives from it
                del right[name], self.errors[name]
                self.unavailable[name] = f"no CUDA graph: {error}".splitlines()[0]

    def to_dict(self) -> dict[str, Any]:
        """For JSON; :meth:`load` reads it."""
        candidates = {
            name: {**timing.to_dict(), "relative_error": self.errors.get(name)} for name, timing in self.timings.items()
        }
        about = {"case": self.name, "problem": str(self.problem), "batch": self.batch, "replayed": self.is_replayed}
        return {**about, "candidates": candidates, "errors": self.errors, "unavailable": self.unavailable}

    def load(self, content: dict[str, Any]) -> None:
        """Take over what was measured before."""
        candidates = content["candidates"].items()
        self.timings = {name: Timing(tuple(found["samples"]), found["calls"]) for name, found in candidates}
        self.errors, self.unavailable = content["errors"], content["unavailable"]


C = TypeVar("C", bound=Case)


def error_of(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest relative error, of the first samples."""
    return max(relative_error(a[: len(b)], b) for a, b in zip(found, expected, strict=True))


def carry_out(
    cases: Sequence[C],
    run: Callable[[C], None],
    write: Callable[[list[C]], None],
    output: Path,
    console: Console,
    dtype: str | None = None,
) -> list[C]:
    """Measure cases, of one dtype if one is named.

    On a GPU those that are in ``output``, the file that ``write`` writes, are not repeated, and each is written as it
    ends.
    """
    known: dict[str, dict[str, Any]] = {}
    if cases[0].device == "cuda" and output.is_file():
        known = {found["case"]: found for found in json.loads(output.read_text(encoding="utf-8"))["stages"]}
    done = []
    for case in cases:
        if case.name in known:
            case.load(known[case.name])
        elif dtype in (None, case.problem.dtype):
            with console.status(case.name):
                run(case)
        else:
            continue
        done.append(case)
        if case.device == "cuda":
            write(done)
    write(done)
    return done


def mean_of(ratios: Sequence[float | None]) -> float | None:
    """Their geometric mean; None if one is refused."""
    right = [ratio for ratio in ratios if ratio is not None]
    return statistics.geometric_mean(right) if right and len(right) == len(ratios) else None
