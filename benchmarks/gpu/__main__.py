"""``python -m benchmarks.gpu FOLDER --output OUT [--seconds 560]``: carry out what is in a prepared folder.

Exit status: 0 if all kernels that ran were right, however far it came; 1 if one was wrong, crashed or did not end; 2 if
there is nothing to run on; 3 if something hung for the rest of the time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tvm_na.measure.worker_pool import start_server

#: Of a run. Those of its steps are fewer: it must start, and pack its results at the end.
SECONDS = 560.0


def main(arguments: list[str] | None = None) -> int:
    """See above."""
    began = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("folder", type=Path, help="what benchmarks.gpu.prepare made")
    parser.add_argument("--output", type=Path, required=True, help="where results go; done steps there are kept")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="after which all has ended; times scale with it")
    parser.add_argument("--device", default="benchmarks.gpu.device:Cuda", help="class of the device, as module:name")
    given = parser.parse_args(arguments)
    start_server()  # which imports PyTorch, as this process does meanwhile
    from benchmarks.gpu.folder import RunFolder
    from benchmarks.gpu.runner import run
    from benchmarks.gpu.schedule import STEPS

    left = given.seconds - (time.monotonic() - began)
    with tempfile.TemporaryDirectory(prefix="tvm-na-gpu-") as work:
        try:
            folder = RunFolder(given.folder)
            _say(f"{len(folder.package.kernels)} kernels for {folder.package.target.name}")
            bad = run(folder, given.output, Path(work), STEPS, given.device, left, _say)
        except (RuntimeError, ValueError) as error:
            _say(str(error))
            return 2
    for one in bad:
        _say(f"bad: {one}")
    return 1 if bad else 0


def _say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
