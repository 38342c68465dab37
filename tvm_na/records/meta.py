"""``meta.json``: what a folder of tuning records says of itself, read without TVM."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tvm_na import fingerprint
from tvm_na.records.files import MALFORMED, META, in_short, read_file

FORMAT = 1


@dataclass
class Meta:
    """What ``meta.json`` holds.

    Attributes:
        target: The name of the target.
        features: The target's CPU, features and vector registers.
        workloads: By structural hash: ``{"problem", "formulation", "tvm": [versions], "date"}``, the first two
            as canonical JSON texts.
        sessions: One mapping per run of the tuner: date, seed, trials, threads, machine, versions.
    """

    target: str
    features: dict[str, Any] = field(default_factory=dict)
    workloads: dict[str, dict[str, Any]] = field(default_factory=dict)
    sessions: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """TypeError where a value is none of those; what a workload lacks is missed where it is needed."""
        _check_kinds(vars(self), target=str, features=dict, workloads=dict, sessions=list)
        for about in self.workloads.values():
            _check_kinds(about, problem=str, formulation=str, tvm=list, date=str)
            for version in about.get("tvm", ()):
                _check_kinds({"tvm": version}, tvm=str)
        for session in self.sessions:
            _check_kinds(session)

    def describe(self, workload: str, attrs: Any, date: str) -> None:
        """Note what a workload is, by the attributes of its PrimFunc, and that the TVM at hand knows it."""
        about = self.workloads.setdefault(workload, {})
        about["problem"] = str(attrs["tvm_na.problem"])
        about["formulation"] = str(attrs["tvm_na.formulation"])
        about["tvm"] = sorted({*about.get("tvm", ()), fingerprint.versions()["apache-tvm"]})
        about["date"] = date

    def add(self, other: Meta) -> None:
        """Take over the workloads and sessions of another folder."""
        for key, about in other.workloads.items():
            mine = self.workloads.setdefault(key, dict(about))
            mine["tvm"] = sorted({*mine.get("tvm", ()), *about.get("tvm", ())})
            mine["date"] = max(mine.get("date", ""), about.get("date", ""))
        self.sessions += [session for session in other.sessions if session not in self.sessions]

    def to_json(self) -> str:
        """The text of ``meta.json``."""
        return json.dumps({"format": FORMAT, **vars(self)}, indent=1) + "\n"


def _check_kinds(given: Any, **kinds: type) -> None:
    """TypeError unless ``given`` is a dict, whose values of these names are of these kinds."""
    if not isinstance(given, dict):
        raise TypeError(f"required an object, got {given!r}")
    for name, kind in kinds.items():
        if name in given and not isinstance(given[name], kind):
            raise TypeError(f"{name}: required {kind.__name__}, got {given[name]!r}")


def read_meta(folder: Path) -> Meta | None:
    """``meta.json`` of a folder; None if there is none.

    Raises:
        ValueError: it cannot be read, is damaged, or of another format.
    """
    file = folder / META
    try:
        loaded = json.loads(read_file(file))
        if loaded.pop("format") != FORMAT:
            raise ValueError(f"another format than {FORMAT}")
        return Meta(**loaded)
    except FileNotFoundError:
        return None
    except (OSError, *MALFORMED) as damage:
        raise ValueError(
            f"records: required a meta.json of format {FORMAT}, got {file}: {in_short(damage)}"
        ) from damage
