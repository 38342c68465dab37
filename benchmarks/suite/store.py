"""Results on disk: one JSON file for each part, written after each case."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import machine_of
from benchmarks.suite.cases import Case, Setting, file_name
from tvm_na.measure.timing import version_of

#: Of peers; their versions count as ours do.
_PEERS = ("timm", "transformers", "natten", "natten-mps")
#: Of CPUs, as Linux names them; the latter multiply bfloat16.
_INSTRUCTIONS = ("avx2", "f16c", "avx512f", "avx512_vnni", "amx_tile")
BF16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16")
_ROOT = Path(__file__).parents[2]
#: What is measured: results of other sources are not kept.
_SOURCES = ("tvm_na", "models", "schedules", "tuning_logs")


def described_machine(device: str) -> dict[str, Any]:
    """The machine with its vector instructions, everybody's versions, and a digest of the sources."""
    machine = machine_of(device)
    machine["versions"] |= {name: version_of(name) for name in _PEERS}
    return {**machine, "flags": _flags(), "sources": digest_of_sources()}


def _flags() -> list[str]:
    told = Path("/proc/cpuinfo")
    words = set(told.read_text(encoding="ascii", errors="replace").split()) if told.is_file() else set()
    return [flag for flag in (*_INSTRUCTIONS, *BF16_INSTRUCTIONS) if flag in words]


def digest_of_sources(root: Path = _ROOT) -> str:
    """Of all files that decide what a call of tvm_na does."""
    digest = hashlib.sha256()
    for folder in _SOURCES:
        for file in sorted((root / folder).rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


@dataclass
class Store:
    """A setting's results; those of other machines, versions and sources, and of cases that changed, are dropped.

    Attributes:
        machine: This machine (:func:`described_machine`).
        setting: Whether it holds a rehearsal, of which device and dtype.
    """

    machine: Mapping[str, Any]
    setting: Setting

    def _file(self, part: str) -> Path:
        return self.setting.folder / file_name(part, self.setting.dtype, self.setting.device)

    def _same_machine(self, content: Mapping[str, Any]) -> bool:
        def without_date(machine: Mapping[str, Any]) -> dict[str, Any]:
            return {name: value for name, value in machine.items() if name != "date"}

        return content["quick"] == self.setting.quick and without_date(content["machine"]) == without_date(self.machine)

    def found(self, part: str) -> dict[str, Any]:
        """What is kept of a part, by the names of cases."""
        file = self._file(part)
        content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        return content["cases"] if content is not None and self._same_machine(content) else {}

    def is_done(self, part: str, case: Case) -> bool:
        """Whether it was measured before, the same, without a failure."""
        known = self.found(part).get(case.name, {"failed": "it was not begun"})
        return "failed" not in known and known["about"] == json.loads(json.dumps(dict(case.about)))

    def put(self, part: str, case: Case, result: Mapping[str, Any], planned: Sequence[str]) -> None:
        """Keep a result with those before, of cases that are planned, in that order; the file is whole at any time."""
        found = {**self.found(part), case.name: {"about": dict(case.about), **result}}
        cases = {name: found[name] for name in planned if name in found}
        content = {"part": part, "quick": self.setting.quick, "machine": self.machine, "cases": cases}
        self.setting.folder.mkdir(parents=True, exist_ok=True)
        new = self._file(part).with_suffix(".new")
        new.write_text(_compact(content) + "\n", encoding="utf-8")
        new.replace(self._file(part))


def _compact(content: Any, depth: int = 0) -> str:
    """JSON with a line for what is five deep, so that samples do not take one each."""
    if depth == 5 or not isinstance(content, dict) or not content:
        return json.dumps(content)
    inner = ",\n".join(f"{' ' * (depth + 1)}{json.dumps(k)}: {_compact(v, depth + 1)}" for k, v in content.items())
    return f"{{\n{inner}\n{' ' * depth}}}"
