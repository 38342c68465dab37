"""Reports: what is read, what is computed of it, and the page."""

from __future__ import annotations

import base64
import json
import logging
import math
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

from tests.cli.invoking import error_of, invoke
from tests.records.tuned import commit_drawn, drawn, edit_compact, edit_meta
from tvm_na.problems.attention import NAProblem
from tvm_na.problems.backward import BackwardProblem
from tvm_na.problems.unfused import UnfusedProblem
from tvm_na.records.files import META
from tvm_na.records.maintain import prune
from tvm_na.records.replay import describe_record
from tvm_na.records.write import TuningDatabase
from tvm_na.report import page as report
from tvm_na.report import plots as report_plots
from tvm_na.report.data import ReportData, found_of_best, load, quality_of, ranks, short_names, spearman
from tvm_na.report.roofline import WORKING_SETS, Rates, bound_of, last_cache_bytes, measure_rates
from tvm_na.targets.target import cpu_name, detect_target
from tvm_na.tune.trial_log import TRIAL_LOG, Trial, TrialLog

ONE, TWO = NAProblem.make((9, 9), 3, 1, 8), NAProblem.make((12, 9), 3, 1, 8, dilation=(1, 2))
RATES = Rates(
    cpu_name(),
    "2026-01-02T03:04:05+00:00",
    0.25,
    {"float32": {1: 50e9, 2: 100e9}},
    {1: {2**18: 40e9, 2**28: 10e9}, 2: {2**18: 80e9, 2**28: 15e9}},
)
ENDING = {"measured": 12, "ending": "all trials are done", "elapsed": 50.0, "first_measurement": 9.5}
SECONDS = {"building": 25.0, "measuring": 15.0, "searching": 7.5, "training": 2.5}


def trials_of(problem: NAProblem, threads: int = 2) -> list[Trial]:
    """A failure, the default at 3 ms, then ever faster points whose prediction is right, and a slow one."""
    func, default = drawn(problem, sample=False)
    parameters = {parameter.name: parameter.value for parameter in default.parameters}
    formulation = str(func.attrs["tvm_na.formulation"])
    point = ("t", 0, problem.to_json(), formulation, threads)
    other = {**parameters, next(iter(parameters)): -1}
    found = [Trial(*point, 0, None, None, "build", other, default.sketch)]
    found.append(Trial(*point, 1, None, 3e-3, None, parameters, default.sketch))
    for number in range(9):
        found.append(Trial(*point, 2 + number, number / 10, (2 - number / 10) * 1e-3, None, other, default.sketch))
    return [*found, Trial(*point, 11, 0.05, 9e-3, None, other, default.sketch)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a session, records of two problems on two threads and one on one, and a journal of the first."""
    folder = tmp_path_factory.mktemp("records")
    commit_drawn(folder, ONE, (1.2, 2.0), threads=2)
    commit_drawn(folder, TWO, (0.5,), threads=1)
    commit_drawn(folder, TWO, (0.25,), threads=2)
    with TuningDatabase(folder, detect_target()) as database:
        database.begin_session(trials=12, threads=2, jobs=3, seed=7, strategy="evolutionary")
        database.end_session(**ENDING, seconds=SECONDS)
    with TrialLog(folder) as journal:
        for trial in trials_of(ONE):
            journal.write(trial)
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(made, tmp_path / "records"))


@pytest.fixture(scope="module")
def data(made: Path) -> ReportData:
    return load(made)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder of a report that has rates already."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / report.RATES).write_text(RATES.to_json())
    return tmp_path / "out"


# --- how well a prediction orders


def test_equal_values_share_their_rank() -> None:
    assert ranks([5.0, 1.0, 5.0, 7.0]).tolist() == [1.5, 0.0, 1.5, 3.0]


def test_rank_correlation() -> None:
    assert spearman([1, 2, 3, 4], [10, 100, 1000, 1e9]) == pytest.approx(1.0)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(0.8)  # 1 - 6 * 4 / (5 * 24)
    assert spearman([1, 1, 1], [1, 2, 3]) is None
    assert spearman([], []) is None


def test_found_of_the_best() -> None:
    measured = [float(i) for i in range(10)]
    assert found_of_best(measured, measured, 0.2) == (2, 2)
    assert found_of_best([-m for m in measured], measured, 0.2) == (0, 2)
    assert found_of_best([9, 0, 0, 0, 0, 0, 0, 0, 0, 8], measured, 0.2) == (1, 2)
    assert found_of_best([], [], 0.2) == (0, 0)


# --- bounds


def test_the_bound_is_the_longer_of_products_and_transfers() -> None:
    large = NAProblem.make((56, 56), 7, 2, 32)  # 3.2 MB: more than the caches of RATES hold
    bound = bound_of(large, 2, RATES)
    assert bound.products == pytest.approx(large.useful_flops / 100e9)
    assert bound.transfers == bound.from_memory == pytest.approx(large.bytes / 15e9)
    assert (bound.seconds, bound.binds) == (bound.products, "products")
    small = NAProblem.make((8, 8), 1, 2, 32)
    bound = bound_of(small, 1, RATES)
    assert bound.transfers == pytest.approx(small.bytes / 40e9)
    assert bound.from_memory == pytest.approx(small.bytes / 10e9)
    assert (bound.seconds, bound.binds) == (bound.transfers, "transfers")
    assert bound_of(small, 1, RATES, cold=True).transfers == bound.from_memory


def test_rates_must_be_there() -> None:
    assert not RATES.covers(ONE, 3)
    with pytest.raises(ValueError, match="rates: required rates of float32 with 3 threads"):
        bound_of(ONE, 3, RATES)
    with pytest.raises(ValueError, match="rates: required rates of float64"):
        bound_of(replace(ONE, dtype="float64"), 1, RATES)


def test_rates_are_measured() -> None:
    rates = measure_rates(["float32"], [1], rounds=1)
    assert rates.cpu == cpu_name()
    assert rates.flops["float32"][1] > 1e8
    sizes = list(rates.bandwidth[1])
    assert sizes[:-1] == list(WORKING_SETS) and sizes[-1] >= 4 * last_cache_bytes()
    assert all(rate > 1e8 for rate in rates.bandwidth[1].values())


@pytest.mark.parametrize("damage", [{"flops": {"float32": {"1": -1.0}}}, {"bandwidth": {}}, {"cpu": None, "load": "x"}])
def test_damaged_rates_are_refused(tmp_path: Path, damage: dict[str, Any]) -> None:
    file = tmp_path / "rates.json"
    file.write_text(RATES.to_json())
    assert Rates.from_file(file) == RATES
    file.write_text(json.dumps({**json.loads(RATES.to_json()), **damage}))
    with pytest.raises(ValueError, match="rates: required what an earlier report wrote"):
        Rates.from_file(file)


# --- what is read


def test_a_task_is_a_problem_on_some_threads(data: ReportData) -> None:
    assert [(task.problem, task.threads) for task in data.tasks] == [(ONE, 2), (TWO, 1), (TWO, 2)]
    first, second, _ = data.tasks
    assert (first.default, first.best.seconds, first.gain) == (3e-3, 1.2e-3, pytest.approx(2.5))
    assert (second.default, second.best.seconds, second.gain) == (None, 0.5e-3, None)
    assert (data.trials, dict(data.failures), data.gain) == (12, {"build": 1}, pytest.approx(2.5))
    assert data.cpus == (cpu_name(),)


def test_the_best_so_far_never_rises(data: ReportData) -> None:
    curve = data.tasks[0].best_so_far
    assert len(curve) == 12 and math.isnan(curve[0])
    assert curve[1:] == sorted(curve[1:], reverse=True)
    assert (curve[1], curve[-1]) == (3e-3, 1.2e-3)
    assert data.tasks[2].best_so_far == [0.25e-3]  # of its records, for want of trials


def test_how_the_cost_model_did(data: ReportData) -> None:
    task = data.tasks[0]
    (predictions,) = task.predictions
    assert predictions.measured[8] == 1.0 and predictions.measured[9] == pytest.approx(1.2 / 9)
    quality = quality_of(task)
    # Of 10 predictions one is displaced, from the lowest place to the second lowest.
    assert (quality.trials, quality.found, quality.of) == (10, 2, 2)
    assert quality.correlation == pytest.approx(1 - 6 * 2 / (10 * 99))
    nothing = quality_of(replace(task, trials=task.trials[:3]))
    assert (nothing.trials, nothing.correlation, nothing.of) == (0, None, 0)


def test_lines_that_make_no_sense_are_skipped(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = json.loads((folder / TRIAL_LOG).read_text().splitlines()[1])
    with (folder / TRIAL_LOG).open("a") as out:
        for change in ({"problem": "{}"}, {"seconds": -1.0}, {"seconds": "fast"}, {"predicted": math.nan}):
            out.write(json.dumps({**good, "time": "noon", **change}) + "\n")
        out.write('{"time": "torn')
    with caplog.at_level(logging.WARNING):
        assert load(folder).trials == 12
    assert "skipped the trial of noon" in caplog.text
    assert all(f"line {number}: skipped" in caplog.text for number in (14, 15, 16, 17))


def test_the_best_schedule_is_described(data: ReportData) -> None:
    best = data.tasks[0].best
    assert best is not None
    said = describe_record(best)
    assert said.startswith("formulation: lanes; ") and "; sketch: pack" in said
    assert "it no longer applies" in describe_record(replace(best, workload="1"))


def test_names_leave_out_what_all_problems_have() -> None:
    names, common = short_names([ONE, TWO])
    assert (names, common) == (["9x9", "12x9, dil 1x2"], "heads 1, dim 8, k 3, float32")
    assert short_names([ONE]) == ([str(ONE)], "")
    names, common = short_names([BackwardProblem.make((7, 6), 3, heads, 16) for heads in (1, 2)])
    assert names == ["heads 1", "heads 2"] and common.startswith("backward, 7x6, dim 16")
    assert short_names([UnfusedProblem.make(kind, (8, 9), 3, 4, 16) for kind in ("av", "qk")])[0] == ["av", "qk"]


# --- the page


class Page(HTMLParser):
    """What is in a page: tables by class, as rows of texts; all text; every reference."""

    VOID = frozenset({"meta", "img", "br", "source", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.tables: dict[str, list[list[str]]] = {}
        self.references: list[str] = []
        self.text = ""
        self._rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.names.add(tag)
        self.references += [str(given[name]) for name in ("src", "srcset", "href", "action") if name in given]
        if tag == "table":
            self._rows = self.tables.setdefault(str(given.get("class")), [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self._rows[-1][-1] += data.strip()


def page_of(folder: Path, out: Path) -> Page:
    return Page(report.write_report(folder, out, measure=False).read_text(encoding="utf-8"))


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes most of a report's time."""
    monkeypatch.setattr(report_plots, "png_of", lambda draw, theme: b"\x89PNG")


def test_the_page_needs_nothing_beside_it(folder: Path, out: Path) -> None:
    page = page_of(folder, out)
    assert not page.names & {"script", "link", "iframe", "object", "embed"}
    source = (out / report.PAGE).read_text(encoding="utf-8")
    assert "url(" not in source and "@import" not in source and "http" not in source
    assert len(page.references) == 6  # three pictures, light and dark
    for reference in page.references:
        kind, _, data = reference.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data, validate=True).startswith(b"\x89PNG")
    assert {file.name for file in out.iterdir()} == {
        *("report.html", "rates.json", "curves.png", "bounds.png", "predictions.png")
    }


@pytest.mark.usefixtures("no_pictures")
def test_numbers_are_those_of_the_records_and_rates(data: ReportData, out: Path) -> None:
    page = page_of(data.folder, out)
    _, *rows = page.tables["results"]
    for row, task in zip(rows, data.tasks, strict=True):
        best = task.best
        assert best is not None
        assert row[:3] == [task.name, str(task.threads), str(len(task.records))]
        assert row[6:8] == [f"{best.seconds * 1e3:.4f}", f"{best.spread:.0%}"]
    assert rows[0][3:6] + rows[0][8:] == ["12", "1", "3.0000", "2.50"]
    assert rows[1][3:6] + rows[1][8:] == ["0", "0", "\N{EN DASH}", "\N{EN DASH}"]
    assert [row[1:] for row in page.tables["quality"][1:]] == [["2", "10", "0.99", "2 of 2 (100%)"]]
    assert page.tables["failures"][1:] == [["build", "1", "8.3%"]]
    assert page.tables["sessions"][1][2:] == ["2", "3", "evolutionary", "7", "12", "12", "all trials are done"]
    assert page.tables["phases"][1][1:] == ["9.5", "25.0", "15.0", "7.5", "2.5", "50.0", "80%"]
    for task in data.tasks:
        assert task.best is not None and describe_record(task.best) in page.text
    for row, task in zip(page.tables["bounds"][1:], data.tasks, strict=True):
        bound = bound_of(task.problem, task.threads, RATES)
        assert row[4] == f"{bound.products * 1e3:.4f}" and row[7:9] == [f"{bound.seconds * 1e3:.4f}", bound.binds]
        assert task.best is not None and row[10] == f"{task.best.seconds / bound.seconds:.2f}"


@pytest.mark.usefixtures("no_pictures")
def test_rates_that_are_too_low_or_of_another_cpu_are_told(folder: Path, out: Path) -> None:
    slow = replace(RATES, flops={"float32": {1: 1e7, 2: 1e7}})
    (out / report.RATES).write_text(slow.to_json())
    assert "The rates are too low: 3 of 3" in page_of(folder, out).text.replace("\n", " ")
    edit_meta(folder, lambda meta: meta["sessions"][0].update(cpu="Z80 <3>"))
    page = page_of(folder, out)
    assert f"the records were measured on Z80 <3>, and the rates would be those of {cpu_name()}" in page.text
    assert not {"bounds", "rates"} & page.tables.keys()
    edit_meta(folder, lambda meta: meta.update(sessions=[]))
    page = page_of(folder, out)
    assert "measured on a CPU that nobody noted" in page.text and "No session is noted" in page.text


@pytest.mark.usefixtures("no_pictures")
def test_rates_are_not_measured_in_vain(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    monkeypatch.setattr(report, "measure_rates", lambda *args: measured.append(args) or RATES)
    (out / report.RATES).unlink()
    report.write_report(folder, out)
    assert measured and Rates.from_file(out / report.RATES) == RATES
    edit_meta(folder, lambda meta: meta["sessions"][0].update(farm=True))
    report.write_report(folder, out)
    assert len(measured) == 1
    assert "devices of a farm" in (out / report.PAGE).read_text(encoding="utf-8")


@pytest.mark.usefixtures("no_pictures")
def test_a_killed_session_and_a_folder_without_a_trial_log(folder: Path, out: Path) -> None:
    edit_meta(folder, lambda meta: [meta["sessions"][0].pop(name) for name in (*ENDING, "seconds")])
    (folder / TRIAL_LOG).unlink()
    page = page_of(folder, out)
    assert set(page.tables["phases"][1][1:]) == {"\N{EN DASH}"}
    assert "predictions.png" not in {file.name for file in out.iterdir()}
    assert page.text.count("There is no journal") == 3
    assert "trials" not in page.tables["results"][0]


# --- the command


@pytest.mark.usefixtures("no_pictures")
def test_compact_records_need_nothing_beside_them(tmp_path: Path) -> None:
    commit_drawn(tmp_path, ONE, (2, 1))
    prune(tmp_path, 1)
    (tmp_path / META).unlink()
    edit_compact(tmp_path, 1, lambda record: record.update(default_seconds=3e-3, cpu="an EPYC"))
    found = load(tmp_path)
    (task,) = found.tasks
    assert (task.problem, task.default, task.gain, found.gain) == (ONE, 3e-3, pytest.approx(3), pytest.approx(3))
    assert (found.target, found.cpus, found.sessions) == (detect_target(), ("an EPYC",), ())


def test_the_command_takes_the_users_records(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TVM_NA_RECORDS_DIR", str(folder.parent))
    assert "records: required an existing folder" in error_of("report", "-o", out, "--no-measure")
    folder.rename(folder.parent / detect_target().name)
    result = invoke("report", "-o", out, "--no-measure")
    assert result.stdout.strip() == f"written: {out / 'report.html'}"
    Page((out / "report.html").read_text(encoding="utf-8"))


def test_what_the_command_refuses(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (["--records", tmp_path / "none"], "records: required an existing folder"),
        (["--records", tmp_path / "empty"], "records: required a folder with tuning records"),
        (["--target", "llvm-x86-mmx"], "target: required native or one of"),
        (["--target", "native", "--records", made], "target: required without --records"),
        (["--records", made, "--no-measure"], "rates: required a file that an earlier report wrote"),
    ):
        assert error_of("report", *arguments, "-o", tmp_path / "new").startswith(message)
    monkeypatch.setattr(report, "_EXTRAS", ("matplotlib", "no_such_package"))
    assert "tvm_na[report], missing no_such_package" in error_of("report", "--records", made, "-o", tmp_path / "new")
    assert not (tmp_path / "new").exists()
