"""What the nine-minute run measured is what operators find then: as records, and as kernels in the cache."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from benchmarks.gpu import points, recorded, worker
from benchmarks.gpu.folder import KERNELS, RunFolder
from benchmarks.gpu.plan import small_plan
from benchmarks.gpu.points import BEST
from benchmarks.gpu.results import Results
from benchmarks.gpu.worker import Place
from tests.benchmarks.pretended import Pretended
from tests.packages.made_up import SMALL, TARGET, small_package
from tvm_na.functional import Backend
from tvm_na.jit import build
from tvm_na.packages.records import digest_of
from tvm_na.records.meta import read_meta
from tvm_na.records.read import records_in
from tvm_na.records.select import select


@pytest.fixture
def place(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Place:
    folder = RunFolder(tmp_path / "folder")
    folder.path.mkdir()
    (folder.path / KERNELS).symlink_to(small_package(tmp_path_factory).folder)
    folder.plan = dataclasses.replace(small_plan(), searched=(SMALL,), timed=(SMALL,), launched=SMALL)
    device = Pretended()
    monkeypatch.setattr(device, "backend", Backend.COMPILED)
    place = Place("", device, folder, tmp_path / "results")
    monkeypatch.setattr(worker, "_here", [place])
    monkeypatch.setenv("TVM_NA_RECORDS", "all")
    monkeypatch.setenv("TVM_NA_RECORDS_DIR", str(tmp_path / "results" / "records"))
    monkeypatch.setenv("TVM_NA_CACHE_DIR", str(tmp_path / "cache"))
    return place


def test_operators_find_the_best(place: Place) -> None:
    fastest, default, package = 1, place.folder.default(SMALL), place.folder.package
    assert recorded.prepare_operators([fastest]) == "off"  # there are no records yet
    assert build.is_cached(SMALL, TARGET)
    results = Results(place.results.parent / "out", place.results)
    kernels = [{"kernel": number, "samples": [number * 1e-3] * 3} for number in (fastest, default + 2)]
    results.add(BEST, str(SMALL), {"value": {"batch": 128, "kernels": kernels}})
    for item in recorded.items(place.folder, results):
        assert recorded.record(*item.arguments) == {"records": 2}
    folder = place.results / "records" / TARGET.name
    assert [(r.problem, r.batch, len(r.run_secs)) for r in records_in(folder)] == [(SMALL, 128, 3)] * 2
    meta = read_meta(folder)
    assert meta is not None and meta.sessions[0]["gpu"] == "NVIDIA Pretended H200"
    assert recorded.prepare_operators([fastest]) == "user"
    assert select(SMALL, TARGET).key == f"record:{digest_of(package, package.kernels[fastest])}"
    assert build.is_cached(SMALL, TARGET)
    assert recorded.prepare_operators() == "off" and select(SMALL, TARGET).kind == "default"


def test_a_fair_part_of_each_problem_is_measured_first(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    other = dataclasses.replace(SMALL, heads=2)
    monkeypatch.setattr(place.folder, "plan", dataclasses.replace(place.folder.plan, searched=(SMALL, other)))
    monkeypatch.setattr(place.folder, "default", lambda problem: 0 if problem == SMALL else 9)
    monkeypatch.setattr(place.folder, "kernels", lambda problem: range(9) if problem == SMALL else range(9, 15))
    monkeypatch.setattr(place.folder, "name", str)
    results = Results(place.results.parent / "out", place.results)
    results.add(points.RIGHT, "12", {"wrong": "numbers"})
    found = [item.arguments for item in points.items(place.folder, results)]
    assert sorted(found) == [(n, 0 if n < 9 else 9) for n in range(15) if n != 12]
    assert [(n < 9) for n, _ in found] == [True] * 3 + [False] * 2 + [True] * 3 + [False] * 2 + [True] * 3 + [False]
    assert found[0] == (0, 0) and found[3] == (9, 9)
