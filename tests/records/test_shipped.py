"""Every record that comes with tvm_na applies, and names the kernel that was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import ROOT
from tvm_na.records.files import COMPACT
from tvm_na.records.read import records_in
from tvm_na.records.record import Record
from tvm_na.records.replay import change_since
from tvm_na.targets.target import list_targets

FOLDERS = sorted(folder for folder in (ROOT / "tuning_logs").iterdir() if folder.is_dir())


@pytest.mark.parametrize(
    "record", [record for folder in FOLDERS for record in records_in(folder)], ids=lambda r: f"{r.target}-{r.digest}"
)
def test_it_names_the_kernel_that_was_measured(record: Record) -> None:
    assert change_since(record) is None


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_folder_has_nothing_else(folder: Path) -> None:
    records, text = records_in(folder), (folder / COMPACT).read_bytes()
    assert len(records) == len({record.digest for record in records}) == text.count(b"\n") > 0
    assert {record.target for record in records} == {folder.name} <= set(list_targets())
    assert [file.name for file in folder.iterdir() if file.name != ".lock"] == [COMPACT]
    assert len(text) < 1500 * len(records)
    for record in records:
        assert record.machine.cpu and record.machine.cores and record.tvm and record.date
