"""Plant each fault in a copy of the working tree, and see whether the tests find it.

The working tree stays as it is, and its tests should pass. A fault counts as found if one of them fails; each run has
an empty cache of kernels. Exits with 1 if a fault was missed or cannot be planted any more.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.progress import Progress

from tests.faults.catalogue import FAULTS, ROOT, Fault


def copy_tree(folder: Path) -> Path:
    """The files of the working tree, also those that git does not know yet, in ``folder``."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for name in names:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    return folder


def failing_test(tree: Path, tests: Sequence[str], workers: str) -> str | None:
    """The first test that fails in ``tree``, None if all pass; RuntimeError if they could not run."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "PYTHONPATH": str(tree), "TVM_NA_CACHE_DIR": cache, "PYTHONDONTWRITEBYTECODE": "1"}
        environment.setdefault("TVM_NA_TEST_PROBLEMS", "40")
        options = ["-x", "-q", "-r", "fE", "--no-header", "-p", "no:cacheprovider", "-n", workers]
        command = [sys.executable, "-m", "pytest", *options, *tests]
        done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    failed = re.search(r"^(?:FAILED|ERROR) (\S+::.+?)(?: - |$)", done.stdout, re.MULTILINE)
    if failed is None:
        raise RuntimeError(f"pytest ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return failed[1]


def finder_of(fault: Fault, tests: Sequence[str], workers: str) -> str | None:
    """The test that finds a fault, None if all pass; ValueError if it cannot be planted, RuntimeError as above."""
    with tempfile.TemporaryDirectory(prefix="tvm-na-faults-") as folder:
        tree = copy_tree(Path(folder))
        fault.plant(tree)
        return failing_test(tree, tests, workers)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--only", default="", metavar="WORDS", help="faults whose names hold these words")
    parser.add_argument("--all-tests", action="store_true", help="run all tests, not those that should find a fault")
    parser.add_argument("--workers", default="0", help="processes that run tests, a number or auto")
    options = parser.parse_args()
    chosen = [fault for fault in FAULTS if options.only in fault.name]
    if not chosen:
        parser.error(f"--only: required words in the name of a fault, got {options.only!r}")

    missed = 0
    with Progress() as progress:
        for fault in progress.track(chosen, description="faults"):
            try:
                found = finder_of(fault, ["tests"] if options.all_tests else fault.tests, options.workers)
                words = found or "NO TEST"
            except (ValueError, RuntimeError) as error:
                found, words = None, f"NOT TRIED: {error}"
            missed += found is None
            progress.console.print(f"{fault.name}: {words}", markup=False, highlight=False, soft_wrap=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
