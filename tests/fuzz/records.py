"""Damaged tuning records: a schedule is chosen without an error, and its kernel is right."""

from __future__ import annotations

import logging
import os
import random
import shutil
from pathlib import Path

from typer.testing import CliRunner

from tests.fuzz.cache import check_numbers, forget_kernels
from tests.fuzz.damage import damage_folder
from tests.fuzz.subject import Subject
from tests.records.tuned import commit_drawn
from tvm_na.cli import app
from tvm_na.problems.attention import NAProblem
from tvm_na.targets.target import detect_target

PROBLEMS = [NAProblem.make((9, 9), 3, 1, 8, bias=bias, return_lse=True) for bias in (False, True)]


class Records(Subject):
    """See the module."""

    name = "records"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        logging.getLogger("tvm_na").setLevel(logging.CRITICAL)  # warnings are what it is meant to give
        os.environ.update(TVM_NA_RECORDS="user", TVM_NA_CACHE_DIR=str(folder / "cache"))
        self.whole = folder / "whole"
        for problem in PROBLEMS:
            commit_drawn(self.whole / detect_target().name, problem, (2, 1, 3), threads=2)

    def round(self, rng: random.Random) -> None:
        """A copy is damaged; calls and the commands that read records survive it."""
        copy = Path(shutil.copytree(self.whole, self.folder / f"copy-{rng.getrandbits(64):x}"))
        try:
            for _ in range(rng.choice([1, 1, 2, 4])):
                damage_folder(rng, copy)
            os.environ["TVM_NA_RECORDS_DIR"] = str(copy)
            forget_kernels()
            for problem in PROBLEMS:
                check_numbers(problem, rng)
            command = rng.choice([("records", "ls"), ("info", "nat_mini"), ("records", "best")])
            found = CliRunner().invoke(app, command)
            assert found.exception is None or isinstance(found.exception, SystemExit), repr(found.exception)
            assert "Traceback" not in found.output
        finally:
            shutil.rmtree(copy)
