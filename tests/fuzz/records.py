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
from tvm_na.records.compact import with_checksum
from tvm_na.records.files import COMPACT
from tvm_na.records.maintain import prune
from tvm_na.targets.target import detect_target

PROBLEMS = [NAProblem.make((9, 9), 3, 1, 8, bias=bias, return_lse=True) for bias in (False, True)]
COMMANDS = [("records", "ls"), ("records", "ls", "--check"), ("records", "best"), ("info", "nat_mini")]


class Records(Subject):
    """See the module."""

    name = "records"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        logging.getLogger("tvm_na").setLevel(logging.CRITICAL)  # warnings are what it is meant to give
        os.environ.update(TVM_NA_RECORDS="user", TVM_NA_CACHE_DIR=str(folder / "cache"))
        self.whole, native = folder / "whole", folder / "whole" / detect_target().name
        for problem in PROBLEMS:
            commit_drawn(native, problem, (2, 1, 3), threads=2)
        prune(native, 2)
        for problem in PROBLEMS:
            commit_drawn(native, problem, (3, 2), threads=2)  # beside compact ones

    def round(self, rng: random.Random) -> None:
        """A copy is damaged; calls and the commands that read records survive it."""
        copy = Path(shutil.copytree(self.whole, self.folder / f"copy-{rng.getrandbits(64):x}"))
        try:
            for _ in range(rng.choice([1, 1, 2, 4])):
                damage_folder(rng, copy)
            if rng.random() < 0.5:
                _sum_up(copy / detect_target().name / COMPACT)
            os.environ["TVM_NA_RECORDS_DIR"] = str(copy)
            forget_kernels()
            for problem in PROBLEMS:
                check_numbers(problem, rng)
            command = rng.choice(
                [("records", "ls"), ("records", "ls", "--check"), ("info", "nat_mini"), ("records", "best")]
            )
            found = CliRunner().invoke(app, command)
            assert found.exception is None or isinstance(found.exception, SystemExit), repr(found.exception)
            assert "Traceback" not in found.output
        finally:
            shutil.rmtree(copy)


def _sum_up(file: Path) -> None:
    """Give damaged lines the checksums that they had if they had been written so."""
    if file.is_file() and file.stat().st_size:  # no pipe, no folder, not /dev/zero
        lines = file.read_bytes().splitlines()
        file.unlink()
        file.write_bytes(b"".join(with_checksum(line) + b"\n" for line in lines))
