"""Cases one after the other, each in a process of its own: one that crashes or hangs is told, and the rest goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.suite.cases import Case, Part, Setting
from benchmarks.suite.store import Store
from benchmarks.suite.turns import rounded
from tvm_na import settings

_ROOT = Path(__file__).parents[2]
Run = Callable[[Part, Case, Setting], dict[str, Any]]


def in_process(part: Part, case: Case, setting: Setting) -> dict[str, Any]:
    """What a case found; ``failed`` with the reason, where it ended otherwise."""
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch) / "answer.json"
        told = {"part": part.name, "case": vars(case), "setting": {**vars(setting), "folder": str(setting.folder)}}
        command = [sys.executable, "-m", "benchmarks.suite.worker", json.dumps(told), str(answer)]
        with (Path(scratch) / "said").open("w+b") as said:
            process = subprocess.Popen(
                command, cwd=_ROOT, env=_environment(case, setting), stdout=said, stderr=said, start_new_session=True
            )
            try:
                process.wait(case.limit)
            except subprocess.TimeoutExpired:
                return {"failed": f"took longer than {case.limit:g} s"}
            finally:
                _end(process)
            said.seek(0)
            last = said.read().decode(errors="replace").strip().splitlines()[-1:]
        if process.returncode:
            return {"failed": f"ended with {process.returncode}: {' '.join(last)[-300:]}"}
        found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return found


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it with the compilers that it may have started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _environment(case: Case, setting: Setting) -> dict[str, str]:
    """What a process has: every core, and what PyTorch compiled before."""
    cores = str(settings.available_cores())
    shared = {"OMP_NUM_THREADS": cores, "TVM_NA_NUM_THREADS": cores}
    shared["TORCHINDUCTOR_CACHE_DIR"] = str((setting.folder / "inductor").resolve())
    return {**os.environ, **shared, **case.environment}


def carry_out(
    parts: Sequence[Part],
    setting: Setting,
    store: Store,
    report: Callable[[str, int, int], None],
    run: Run = in_process,
) -> list[str]:
    """Measure what is not known yet; the names of cases that failed.

    ``report`` is told each case as it begins, its number and how many there are, and ``""`` at the end.
    """
    planned = [(part, case) for part in parts for case in part.cases(setting)]
    failed, load = [], os.getloadavg()[0]  # later it is that of the cases before
    for number, (part, case) in enumerate(planned):
        if store.is_done(part.name, case):
            continue
        report(f"{part.name}: {case.name}", number, len(planned))
        start = time.perf_counter()
        result = run(part, case, setting)
        took = rounded(time.perf_counter() - start)
        if "failed" in result:
            failed.append(f"{part.name}: {case.name}: {result['failed']}")
        names = [other.name for of, other in planned if of is part]
        store.put(part.name, case, {"load_before": rounded(load), "took": took, **result}, names)
    report("", len(planned), len(planned))
    return failed
