"""What Nsight Compute (``ncu``) says of kernels, where it is there and may read the GPU's counters."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import tools
from benchmarks.gpu.folder import RunFolder
from benchmarks.gpu.points import best_kernel
from benchmarks.gpu.results import Results
from benchmarks.gpu.steps import Item
from benchmarks.gpu.worker import here

SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "WarpStateStats", "Occupancy", "LaunchStats")
_SECONDS = 40.0


def items(folder: RunFolder, results: Results) -> list[Item]:
    """The default kernel and the best one of each problem that is searched."""
    pairs = [(p, folder.default(p), best_kernel(folder, results, p)) for p in folder.plan.searched]
    return [Item(str(problem), (tuple(dict.fromkeys(numbers)),)) for problem, *numbers in pairs]


def command(ncu: Path, report: Path, numbers: Sequence[int], batch: int) -> list[str]:
    """The tool's command: of the launches that are marked, those sections, as CSV in a file."""
    sections = [word for section in SECTIONS for word in ("--section", section)]
    options = ["--csv", "--page", "details", "--profile-from-start", "off", "--target-processes", "all"]
    return tools.command(ncu, [*options, *sections, "--log-file", str(report)], numbers, batch)


def profile(numbers: Sequence[int]) -> dict[str, Any]:
    """Profile kernels, in one process."""
    place = here()
    ncu = place.device.tool("ncu")
    if ncu is None:
        return {"left_out": "ncu is not there"}
    report = place.results / "tools" / f"ncu-{'-'.join(map(str, numbers))}.csv"
    report.parent.mkdir(exist_ok=True)
    words = command(ncu, report, numbers, place.device.batch)
    status, said = tools.run(words, report.with_suffix(".txt"), _SECONDS)
    text = report.read_text(encoding="utf-8") if report.is_file() else ""
    launches = parsed(text)
    if not launches:
        why = [line for line in (text + said).splitlines() if line.startswith("==ERROR==")]
        return {"left_out": f"ncu, exit status {status}: {why[0] if why else said.strip()[-200:]}"}
    return {"kernels": [place.folder.name(n) for n in numbers], "launches": launches}


def parsed(text: str) -> list[dict[str, Any]]:
    """What ``ncu --csv --page details`` printed: of each launch its kernel, its metrics by section as text with their
    units, and what the rules found.
    """
    start = text.find('"ID",')
    found: dict[str, dict[str, Any]] = {}
    for row in csv.DictReader(io.StringIO(text[start:])) if start >= 0 else ():
        if row["ID"] is None or not row["ID"].isdecimal():  # what ncu says of itself, between the rows
            continue
        launch = found.setdefault(row["ID"], {"kernel": row["Kernel Name"], "sections": {}, "rules": []})
        launch |= {"grid": row["Grid Size"], "block": row["Block Size"]}
        if row.get("Metric Name"):
            value = f"{row['Metric Value'].replace(',', '')} {row['Metric Unit']}".strip()
            launch["sections"].setdefault(row["Section Name"], {})[row["Metric Name"]] = value
        elif row.get("Rule Description"):
            launch["rules"].append(row["Rule Description"])
    return list(found.values())
