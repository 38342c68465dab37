"""``python -m tvm_na.packages DIR``: ``tvm-na tune --from DIR`` where what the command line needs is not installed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tvm_na.measure.timing import format_speedup, format_time
from tvm_na.packages.measure import MeasureOptions, measure_package
from tvm_na.packages.package import Package
from tvm_na.tune.state import INTERRUPTED, TuneState


def main(arguments: list[str] | None = None) -> int:
    """Measure a package, and print what came of it; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tvm_na.packages", description=__doc__)
    parser.add_argument("package", type=Path, help="the package's folder")
    parser.add_argument("--output", type=Path, help="folder of the records; default: the user's")
    parser.add_argument("--time-limit", type=float, help="seconds at most")
    parser.add_argument("--batch", type=int, default=0, help="batch size; 0 for 128, or what fits")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    given = parser.parse_args(arguments)
    try:
        options = MeasureOptions(given.batch, given.time_limit, seed=given.seed)
        state = measure_package(Package.open(given.package), given.output, options)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in summary(state):
        print(line)
    return 130 if state.ending == INTERRUPTED else 0


def summary(state: TuneState) -> list[str]:
    """A line for each problem, and how it ended."""
    lines = []
    for problem in state.problems:
        words = [str(problem.problem), f"batch {problem.batch}", f"{problem.trials} points"]
        if problem.leader is not None and problem.best is not None:
            words += [f"best {format_time(problem.best)}", problem.leader.label]
        if problem.improvement is not None:
            words.append(f"{format_speedup(problem.improvement)} as fast as the default")
        words += [f"{count} {reason}" for reason, count in problem.failures.most_common()]
        lines.append(", ".join(filter(None, words)))
    return [*lines, f"{state.measured} kernels measured in {state.elapsed:.0f} s: {state.ending}"]


if __name__ == "__main__":
    sys.exit(main())
