"""Damaged caches of kernels: the numbers are right, or an error names the cache."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

from tests.conftest import TOLERANCE
from tests.fuzz.damage import damage_folder
from tests.fuzz.subject import Subject, promised
from tests.helpers import forget_calls, random_inputs, reference64, relative_error
from tests.ops.gradients import attend
from tvm_na.jit import build, cache
from tvm_na.problems.attention import NAProblem

#: Of one signature: a kernel of another's name would be called without an error.
PROBLEMS = [NAProblem.make((6, 7), size, 1, 4, return_lse=True) for size in (3, 5)]
PROBLEMS.append(NAProblem.make((6, 7), 3, 1, 4, dilation=2, return_lse=True))


def forget_kernels() -> None:
    """Look for every kernel on disk again, as a new process does."""
    build._kernels.clear()
    forget_calls()


def check_numbers(problem: NAProblem, rng: random.Random) -> None:
    """A call gives what the reference gives."""
    inputs = random_inputs(problem, 2, rng.getrandbits(32))
    out, _ = attend(problem, *(t for t in inputs if t is not None))
    assert relative_error(out, reference64(problem, inputs, 0.6)[0]) <= TOLERANCE[problem.dtype], f"wrong: {problem}"


class Cache(Subject):
    """See the module."""

    name = "cache"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.whole = folder / "whole"
        self._use(self.whole)
        for problem in PROBLEMS:
            check_numbers(problem, random.Random(0))

    def _use(self, folder: Path) -> None:
        os.environ["TVM_NA_CACHE_DIR"] = str(folder)
        forget_kernels()

    def round(self, rng: random.Random) -> None:
        """A copy is damaged and used twice: what is mended stays so."""
        copy = Path(shutil.copytree(self.whole, self.folder / f"copy-{rng.getrandbits(64):x}"))
        try:
            done = [damage_folder(rng, copy) for _ in range(rng.choice([1, 1, 2, 4]))]
            for _ in range(2):
                self._use(copy)
                for problem in rng.sample(PROBLEMS, len(PROBLEMS)):
                    try:
                        check_numbers(problem, rng)
                    except (RuntimeError, OSError) as error:
                        promised(error, RuntimeError, begins="kernel cache: ", note=str(done))
            cache.entries()
            cache.clear()
        finally:
            shutil.rmtree(copy)
