"""docs/BENCHMARKS.md and README's numbers, from results."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.suite.cases import MAIN_DTYPE
from benchmarks.suite.report import halves, tables, verdicts
from benchmarks.suite.report.results import Measured, Results, mean, stages

if TYPE_CHECKING:
    from jinja2 import Environment

_HERE = Path(__file__).parent


def page(results: Results) -> str:
    """docs/BENCHMARKS.md."""
    op = results.operator()
    machine = results.machine if results.parts or results.others else None
    return _render(
        "benchmarks.md.j2",
        results=results,
        machine=machine,
        dtype=MAIN_DTYPE["cpu" if machine["device"] == "cpu" else "cuda"] if machine else "",
        sources=_sources(results),
        mean_of=partial(_mean_of, op),
        goals_table=verdicts.goals_table,
        halves=halves,
        losses=verdicts.losses,
        losses_table=verdicts.losses_table,
    )


def _sources(results: Results) -> str:
    """Whose models they are, in words."""
    names: dict[str, set[str]] = {}
    for case in results.cases("models").values():
        for name, source in case.get("sources", {}).items():
            names.setdefault(source, set()).add(name)
    return "; ".join(f"{source} ({', '.join(sorted(names[source]))})" for source in sorted(names))


def with_numbers(readme: str, results: Results) -> str:
    """README with its numbers in place of those between two comments each; as it is, where no operator was measured.

    Raises:
        ValueError: the comments are not there.
    """
    found = stages(results.operator())
    if not found:
        return readme
    block = _render(
        "readme.md.j2",
        machine=results.machine,
        stages=found,
        mean_of=partial(_mean_of, found),
        compiled=results.comparison("models", tables.CASES["torch.compile"]),
        packages=results.comparison("models", tables.CASES["AOTInductor"]),
    )
    over_peer = [one.over_peer for one in found if one.over_peer is not None]
    headline = f"{tables.times(min(over_peer), 1)} to {tables.times(max(over_peer), 1)}"
    return _replaced(_replaced(readme, "headline", headline), "numbers", f"\n\n{block}\n")


def _replaced(readme: str, name: str, text: str) -> str:
    begin, end = f"<!-- {name}: make bench -->", f"<!-- end of {name} -->"
    before, found, rest = readme.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"readme: required {begin} and {end}, got neither or one")
    return f"{before}{begin}{text}{end}{after}"


def _mean_of(found: Sequence[Measured], attribute: str) -> float | None:
    return mean([getattr(one, attribute) for one in stages(found)])


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(_HERE)
    return Environment(loader=loader, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _render(template: str, **names: object) -> str:
    text = _environment().get_template(template).render(tables=tables, ms=tables.ms, times=tables.times, **names)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"
