"""What ``compute-sanitizer`` says of a few tiny kernels, where it is there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu import tools
from benchmarks.gpu.folder import RunFolder
from benchmarks.gpu.kernels import BATCH
from benchmarks.gpu.results import Results
from benchmarks.gpu.steps import Item
from benchmarks.gpu.worker import here
from tvm_na.reference.case import WrongNumbers

TOOLS = ("memcheck", "racecheck")
_SECONDS, _FOUND = 45.0, 9
_WARNING = "Warning: "  # a hazard that the hardware's order of warps may rule out
_LINE = re.compile(r"^=========\s?(.*)$", re.MULTILINE)


def items(folder: RunFolder, results: Results) -> list[Item]:
    """Each of its tools, on all tiny kernels at once: starting takes the most time."""
    numbers = tuple(folder.default(problem) for problem in folder.plan.tiny.values())
    return [Item(tool, (tool, numbers)) for tool in TOOLS]


def command(sanitizer: Path, tool: str, numbers: Sequence[int], batch: int = BATCH) -> list[str]:
    """The tool's command."""
    options = ["--tool", tool, "--error-exitcode", str(_FOUND), "--target-processes", "all", "--print-limit", "20"]
    options += ["--report-api-errors", "no"] * (tool == "memcheck")  # PyTorch tries what may fail
    return tools.command(sanitizer, options, numbers, batch)


def sanitize(tool: str, numbers: Sequence[int]) -> dict[str, Any]:
    """Run kernels under a tool; WrongNumbers if it found something.

    Raises:
        RuntimeError: it did not come to its summary.
    """
    place = here()
    sanitizer = place.device.tool("compute-sanitizer")
    if sanitizer is None:
        return {"left_out": "compute-sanitizer is not there"}
    status, said = tools.run(command(sanitizer, tool, numbers), place.results / "tools" / f"{tool}.txt", _SECONDS)
    summary, found = parsed(said)
    if summary is None:
        raise RuntimeError(f"{tool}: required a summary, got exit status {status}: {said.strip()[-300:]}")
    told = [f"{kernel}: {what}" for kernel, every in found.items() for what in every]
    if status or not all(_WARNING in one for one in told):
        raise WrongNumbers(f"{tool}: {summary}: {'; '.join(told) or f'exit status {status}'}")
    return {"kernels": [place.folder.name(n) for n in numbers], "summary": summary, "warnings": told}


def parsed(said: str) -> tuple[str | None, dict[str, list[str]]]:
    """The summary of a sanitizer's output, None if there is none, and what it found, by the kernel launched before."""
    kernel, summary, found = "no kernel", None, dict[str, list[str]]()
    for line in said.splitlines():
        if line.startswith(tools.KERNEL):
            kernel = line.removeprefix(tools.KERNEL)
        told = _LINE.match(line)
        if told is None:
            continue
        if "SUMMARY:" in told[1]:
            summary = told[1].strip()
        elif re.match(r"(Invalid|Misaligned|Error:|Warning:|Race|Potential|Program hit|Out-of-range|Barrier)", told[1]):
            found.setdefault(kernel, []).append(told[1].strip())
    return summary, found
