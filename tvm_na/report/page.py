"""A folder of tuning records as a page that needs nothing beside it, and its pictures as PNG files."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tvm_na import settings
from tvm_na.measure.timing import require_extra, versions
from tvm_na.records.replay import describe_record
from tvm_na.records.write import now
from tvm_na.report import plots
from tvm_na.report.data import BEST_SHARE, MIN_PREDICTED, ReportData, Task, load, quality_of
from tvm_na.report.plots import DARK, LIGHT, Draw
from tvm_na.report.roofline import Bound, Rates, bound_of, measure_rates
from tvm_na.targets.target import cpu_name

PAGE, RATES = "report.html", "rates.json"
_TEMPLATE = Path(__file__).with_name("page.html.j2")
_EXTRAS = ("matplotlib", "jinja2")
_NONE = "\N{EN DASH}"


@dataclass(frozen=True)
class Picture:
    """A picture of the page as data URIs; ``alt`` is what it shows, for who cannot see it."""

    alt: str
    light: str
    dark: str


def rates_for(data: ReportData, out: Path, measure: bool) -> Rates | str:
    """This machine's rates for the tasks of a report, or why they cannot be compared with its records, in words.

    They are kept in ``out``, the report's folder; unless ``measure`` says so, those of an earlier report are taken.

    Raises:
        ValueError: they are not to be measured, and there are none, or damaged ones.
    """
    if not measure:
        rates = Rates.from_file(out / RATES)
        return why_not_comparable(data, rates.cpu) or rates
    reason = why_not_comparable(data, cpu_name())
    if reason is not None:
        return reason
    dtypes = {task.problem.accum_dtype for task in data.tasks}
    threads = {task.threads for task in data.tasks if task.threads <= settings.available_cores()}
    rates = measure_rates(dtypes, threads)
    out.mkdir(parents=True, exist_ok=True)
    (out / RATES).write_text(rates.to_json(), encoding="utf-8")
    return rates


def why_not_comparable(data: ReportData, cpu: str) -> str | None:
    """Why the records' times say nothing beside the rates of a CPU, in words; None if they can be compared."""
    if data.target.kind == "cuda":
        return "records were measured on a GPU, and the rates would be this machine's CPU's"
    if any(session.get("farm") for session in data.sessions):
        return "records were measured on devices of a farm, and the rates would be this machine's"
    cpus = " and ".join(data.cpus) or "a CPU that nobody noted"
    if set(data.cpus) != {cpu}:
        return f"the records were measured on {cpus}, and the rates would be those of {cpu}"
    return None


def bounds_of(data: ReportData, rates: Rates) -> list[tuple[Task, Bound]]:
    """The bound of each task that ``rates`` has the threads and dtype of."""
    cold = bool(data.sessions) and all(session.get("cold_cache") for session in data.sessions)
    return [
        (task, bound_of(task.problem, task.threads, rates, cold, task.batch))
        for task in data.tasks
        if rates.covers(task.problem, task.threads)
    ]


def write_report(folder: Path, out: Path, measure: bool = True) -> Path:
    """Write ``report.html``, its pictures and ``rates.json`` of a folder of records to ``out``; the page.

    Unless ``measure`` says to measure this machine's rates, ``rates.json`` in ``out`` is taken.

    Raises:
        ValueError: there are no records, or no rates.
        RuntimeError: matplotlib or Jinja is missing.
    """
    require_extra("report", "report", *_EXTRAS)
    data = load(folder)
    rates = rates_for(data, out, measure)
    out.mkdir(parents=True, exist_ok=True)
    page = out / PAGE
    page.write_text(page_of(data, rates, out), encoding="utf-8")
    return page


def page_of(data: ReportData, rates: Rates | str, out: Path) -> str:
    """The page, of what :func:`rates_for` gave; writes the pictures into ``out``."""
    from jinja2 import Environment, StrictUndefined

    incomparable = rates if isinstance(rates, str) else None
    bounded = [] if isinstance(rates, str) else bounds_of(data, rates)
    draw: dict[str, tuple[str, Draw]] = {"curves": ("Best time so far over the trials", partial(plots.curves, data))}
    if bounded:
        draw["bounds"] = "Bound, best and default time", partial(plots.bounds, bounded)
    if any(task.predictions for task in data.tasks):
        draw["predictions"] = "Predicted score and measured time", partial(plots.predictions, data)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= _FILTERS
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(
        data=data,
        rates=rates,
        pictures={name: _picture(out / f"{name}.png", *described) for name, described in draw.items()},
        incomparable=incomparable,
        bounded=bounded,
        beaten=[task for task, bound in bounded if task.best and task.best.seconds < 0.98 * bound.seconds],
        unbounded=sorted({task.threads for task in data.tasks} - {task.threads for task, _ in bounded}),
        quality=[(task, quality_of(task)) for task in data.tasks if task.predictions],
        best_share=BEST_SHARE,
        min_predicted=MIN_PREDICTED,
        schedules=[(task, describe_record(task.best)) for task in data.tasks if task.best],
        sessions=[_session(facts) for facts in data.sessions],
        versions=versions(),
        date=now(),
    )


def _picture(file: Path, alt: str, draw: Draw) -> Picture:
    light, dark = plots.png_of(draw, LIGHT), plots.png_of(draw, DARK)
    file.write_bytes(light)
    return Picture(alt, *(f"data:image/png;base64,{base64.b64encode(png).decode()}" for png in (light, dark)))


def _session(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What is shown of a run of the tuner; an interrupted one has no facts of its end."""
    seconds: Mapping[str, float] = facts.get("seconds") or {}
    elapsed = facts.get("elapsed")
    productive = sum(seconds.get(phase, 0.0) for phase in ("building", "measuring"))
    return {
        "facts": facts,
        "first": facts.get("first_measurement"),
        "seconds": {phase: seconds.get(phase) for phase in ("building", "measuring", "searching", "training")},
        "productive": productive / elapsed if elapsed and seconds else None,
    }


def _or_dash(form: str, unit: float = 1.0) -> Callable[[float | None], str]:
    """How to write a number, in multiples of ``unit``; a dash for None."""
    return lambda number: _NONE if number is None else form.format(number / unit)


def _minute(date: str) -> str:
    """A date in ISO 8601 (UTC), to the minute; a dash for none."""
    return f"{date[:16].replace('T', ' ')} UTC" if date else _NONE


# All times of a table have as many decimals.
_FILTERS = {
    "ms": _or_dash("{:.4f}", 1e-3),
    "seconds": _or_dash("{:.1f}"),
    "times": _or_dash("{:.2f}"),
    "giga": _or_dash("{:.1f}", 1e9),
    "percent": _or_dash("{:.0%}"),
    "minute": _minute,
}
