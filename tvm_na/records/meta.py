"""``meta.json``: what a folder of tuning records says of itself, read without TVM."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tvm_na import fingerprint
from tvm_na.records.files import MALFORMED, META, in_short, read_file, write_atomically
from tvm_na.records.record import Machine
from tvm_na.targets.target import NATarget

FORMAT = 1

T = TypeVar("T")


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
            _check_kinds(session, cpu=str, cores=int, gpu=str, versions=dict)

    def describe(self, workload: str, attrs: Any, date: str) -> None:
        """Note what a workload is, by the attributes of its PrimFunc, and that the TVM at hand knows it."""
        about = self.workloads.setdefault(workload, {})
        about["problem"] = str(attrs["tvm_na.problem"])
        about["formulation"] = str(attrs["tvm_na.formulation"])
        about["tvm"] = sorted({*about.get("tvm", ()), fingerprint.versions()["apache-tvm"]})
        about["date"] = date

    def to_json(self) -> str:
        """The text of ``meta.json``."""
        return json.dumps({"format": FORMAT, **vars(self)}, indent=1) + "\n"


def machine_of(sessions: Sequence[Mapping[str, Any]]) -> Machine:
    """The machine and the versions of sessions, as far as all of them say the same."""

    def same(name: str, nothing: T) -> T:
        first, *others = [session.get(name, nothing) for session in sessions] or [nothing]
        return first if all(other == first for other in others) else nothing

    versions: dict[str, Any] = same("versions", {})
    as_texts = tuple((name, str(version)) for name, version in versions.items())
    return Machine(same("cpu", ""), same("cores", 0), same("gpu", ""), as_texts)


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


def features_of(target: NATarget) -> dict[str, Any]:
    """What of a target a schedule depends on, as ``meta.json`` has it."""
    return {name: list(v) if isinstance(v, tuple) else v for name, v in target.to_dict().items() if name != "name"}


def check_meta(meta: Meta, folder: Path, target: NATarget) -> None:
    """ValueError if ``folder``, which has ``meta``, holds records of another target than ``target``."""
    if (meta.target, meta.features) != (target.name, features_of(target)):
        got = meta.target if meta.target != target.name else f"other features, {meta.features}"
        raise ValueError(f"records: required records of {target.name} in {folder}, got {got}")


def write_meta(folder: Path, meta: Meta) -> None:
    """Write ``meta.json``."""
    write_atomically(folder / META, meta.to_json().encode())
