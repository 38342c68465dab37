"""How to tune: the options of a run, checked and completed, and the batch of a problem."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from tvm_na import settings
from tvm_na.problems.checks import check_int
from tvm_na.problems.registry import Problem
from tvm_na.reference.case import DISTINCT
from tvm_na.targets.target import NATarget

#: The batch on a GPU, where its memory has room for it: enough work for all of its processors.
GPU_BATCH = 128
#: The part of a GPU's free memory that inputs, outputs and the reference may take.
_PART = 4
_DOUBLE = 8  # bytes


#: The search with XGBoost's cost model, and random points to compare it with.
Strategy = Literal["evolutionary", "random"]
_COUNTS = ("trials", "jobs", "seed", "threads", "batch", "candidates")


@dataclass(frozen=True)
class TuneOptions:
    """How to tune.

    Attributes:
        trials: Measurements at most, failed ones too, over all tasks, with those that are already recorded.
        time_limit: Seconds at most.
        jobs: Candidates compiled at once; 0 for one per core.
        seed: Of all random numbers.
        threads: Threads of a kernel; 0 for what production uses. On a GPU it plays no role.
        batch: Samples of a call; 0 for 1 on a CPU, and on a GPU for 128, or fewer where its memory is small, or as many
            as the problem's former trials in the same folder had. Trials with others are not compared.
        cold_cache: Whether caches are flushed before each repeat; such records are not comparable with others.

    Raises:
        TypeError, ValueError: name the option, what was required and what came.
    """

    trials: int = 1000
    time_limit: float | None = None
    jobs: int = 0
    seed: int = 0
    threads: int = 0
    batch: int = 0
    cold_cache: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name in _COUNTS:
                check_int(name, value, 1 if name == "trials" else 0)
        if self.time_limit is not None and not self.time_limit > 0:
            raise ValueError(f"time_limit: required seconds > 0, got {self.time_limit}")


@dataclass(frozen=True)
class SearchOptions(TuneOptions):
    """With what experiments change of the search itself.

    Attributes:
        candidates: Built and measured in one go; 0 for a number that fits the trials.
        strategy: See :data:`Strategy`.
        defaults_first: Whether the default point of each formulation is measured first.
        only_default_formulation: Whether the other formulations are left out.
    """

    candidates: int = 0
    strategy: Strategy = "evolutionary"
    defaults_first: bool = True
    only_default_formulation: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strategy not in get_args(Strategy):
            raise ValueError(f"strategy: required evolutionary or random, got {self.strategy!r}")

    def completed(self, problems: int, threads: int) -> SearchOptions:
        """With numbers in place of zeros, for so many problems; but the batch, which each problem has for itself."""
        jobs = self.jobs or settings.available_cores()
        # Fewer ask the model more often, more keep more jobs busy.
        candidates = self.candidates or max(4, min(16, self.trials // problems // 8))
        return replace(self, jobs=jobs, threads=threads, candidates=candidates)


def batch_for(problem: Problem, target: NATarget, wanted: int, before: int | None, free: int | None) -> int:
    """The batch that a problem is measured with.

    Args:
        wanted: What the user wants; 0 for 1 on a CPU, and on a GPU for :data:`GPU_BATCH`, halved until it fits.
        before: What it was measured with before, which stays unless it no longer fits; None if it was not.
        free: Bytes of a GPU's memory that nobody uses; None where that is not known.

    Raises:
        ValueError: what the user wants does not fit.
    """
    most = problem.largest_batch(target.kind)
    if wanted:
        if wanted > most:
            raise ValueError(f"batch: required at most {most} (kernels count in 32 bits) for {problem}, got {wanted}")
        if free is not None and bytes_needed(problem, wanted) > free:
            needed = f"{bytes_needed(problem, wanted)} bytes for {problem}"
            raise ValueError(f"batch: required one that fits into the GPU's {free} free bytes, got {wanted}, {needed}")
        return wanted
    if target.kind != "cuda":
        return 1
    if before is not None and (free is None or bytes_needed(problem, before) <= free):
        return before
    batch = GPU_BATCH
    while batch > 1 and (batch > most or (free is not None and _PART * bytes_needed(problem, batch) > free)):
        batch //= 2
    return batch


def bytes_needed(problem: Problem, batch: int) -> int:
    """Bytes of a GPU's memory that measuring takes: two sets of inputs and outputs, what is right, making that."""
    return 2 * batch * problem.bytes + problem.reference_elements(DISTINCT) * _DOUBLE
