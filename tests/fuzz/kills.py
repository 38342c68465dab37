"""Builds and tuners killed at any instant: nothing is lost or damaged, and the next process goes on."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from tests.fuzz.cache import PROBLEMS, check_numbers, forget_kernels
from tests.fuzz.subject import Subject
from tests.helpers import ROOT
from tvm_na.records.read import records_in
from tvm_na.records.write import TuningDatabase
from tvm_na.targets.target import detect_target
from tvm_na.tune.trial_log import trials_in

_BUILD = "from tvm_na.jit import build; from tests.fuzz.cache import PROBLEMS; [build.kernel_for(p) for p in PROBLEMS]"
_TUNE = ("-m", "tvm_na", "tune", "--size", "6", "7", "--kernel-size", "3", "--heads", "1", "--head-dim", "4")


class Kills(Subject):
    """See the module."""

    name = "kills"
    seconds = 300.0

    def _killed(self, rng: random.Random, seconds: float, *arguments: str) -> None:
        command = [sys.executable, *arguments]
        process = subprocess.Popen(
            command, cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            process.wait(rng.uniform(0.2, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT]))
            process.wait(60)

    def round(self, rng: random.Random) -> None:
        """Kill some of one kind, one after the other, in one folder."""
        folder = self.folder / f"{rng.getrandbits(64):x}"
        folder.mkdir()
        os.environ["TVM_NA_CACHE_DIR"] = str(folder / "cache")
        try:
            if rng.random() < 0.6:
                for _ in range(rng.randint(1, 3)):
                    self._killed(rng, 5, "-c", _BUILD)
                forget_kernels()
                for problem in PROBLEMS:
                    check_numbers(problem, rng)
                assert not list((folder / "cache" / "index").glob(".tmp-*.json"))
            else:
                self._round_of_tuners(rng, folder / "records")
        finally:
            shutil.rmtree(folder)

    def _round_of_tuners(self, rng: random.Random, records: Path) -> None:
        kept = 0
        for _ in range(rng.randint(1, 2)):
            self._killed(rng, 20, *_TUNE, "--trials", "12", "--output", str(records))
            if not records.exists():
                continue
            with TuningDatabase(records, detect_target()):  # opens: mends what was torn
                pass
            found = len(records_in(records))
            assert found >= kept, f"{kept} records before, {found} now"
            assert len(trials_in(records)) <= found + 12
            kept = found
