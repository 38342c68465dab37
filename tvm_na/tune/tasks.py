"""What is to be tuned: problems and how much each weighs, and the formulations and spaces of a problem."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tvm_na.problems.registry import PROBLEMS, Problem
from tvm_na.targets.target import NATarget

if TYPE_CHECKING:
    from tvm_na.schedules import SearchSpace
    from tvm_na.schedules.base import Scheduled

P = TypeVar("P", bound=Problem)


@dataclass(frozen=True)
class TuneTask:
    """A problem that is to be tuned.

    Attributes:
        problem: The problem.
        weight: How much its time counts, such as the number of layers that pose it.

    Raises:
        TypeError, ValueError: name the argument, what was required and what came.
    """

    problem: Problem
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.problem, tuple(PROBLEMS.values())):
            kinds = ", ".join(kind.__name__ for kind in PROBLEMS.values())
            got = f"{type(self.problem).__name__} {self.problem!r}"
            raise TypeError(f"problem: required one of {kinds}, got {got}")
        if isinstance(self.weight, bool) or not isinstance(self.weight, (int, float)):
            raise TypeError(f"weight: required a number, got {type(self.weight).__name__} {self.weight!r}")
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(f"weight: required a finite number > 0, got {self.weight}")


def tasks_of(problems: Mapping[P, int]) -> list[TuneTask]:
    """Tasks for the problems of a model, weighted by the layers that pose them (``models.problems_of``)."""
    return [TuneTask(problem, float(count)) for problem, count in problems.items()]


def merged(tasks: Sequence[TuneTask]) -> list[TuneTask]:
    """One task for each problem, in order of first mention; weights add up."""
    weights: dict[Problem, float] = {}
    for task in tasks:
        weights[task.problem] = weights.get(task.problem, 0.0) + task.weight
    return [TuneTask(problem, weight) for problem, weight in weights.items()]


def tasks_from_file(file: Path) -> list[TuneTask]:
    """Tasks in a JSON file: a list of problems, each an object with the arguments of ``NAProblem.make``.

    With "operator": "backward" it is the gradients of that attention; with "operator": "dense" the arguments are those
    of ``DenseProblem.make``, with "operator": "unfused" those of ``UnfusedProblem.make``. What ``to_json`` of a problem
    writes is such an object. A key "weight" is the task's weight.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it holds something else; the message says which entry is wrong, and why.
    """
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"problems: required a JSON file, got {file}: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"problems: required a list of one problem or more, got {file} with {type(entries).__name__}")
    return merged([_task(entry, f"{file}, entry {number}") for number, entry in enumerate(entries)])


def _task(entry: Any, where: str) -> TuneTask:
    if not isinstance(entry, dict):
        raise ValueError(f"problems: required JSON objects, got {entry!r} ({where})")
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}
    weight = values.pop("weight", 1.0)
    operator = values.pop("operator", None)
    try:
        if not (operator is None or isinstance(operator, str)) or operator not in PROBLEMS:
            known = ", ".join(filter(None, PROBLEMS))
            raise ValueError(f"operator: required one of {known}, or none for attention, got {operator!r}")
        return TuneTask(PROBLEMS[operator].make(**values), weight)
    except (TypeError, ValueError) as error:
        raise ValueError(f"problems: {error} ({where})") from error


@dataclass(frozen=True)
class Formulation:
    """One way to write a problem down, and its search space.

    Attributes:
        func: Its PrimFunc, for a batch of one (MetaSchedule cannot describe a symbolic size).
        text: The formulation as canonical JSON.
        spaces: The default point of each sketch, by its name, the default sketch first.
    """

    problem: Problem
    space: SearchSpace
    func: Any = field(repr=False)
    text: str
    spaces: Mapping[str, Scheduled] = field(repr=False)

    @property
    def default(self) -> Scheduled:
        """The point that is built where there are no records."""
        return next(iter(self.spaces.values()))

    @property
    def points(self) -> int:
        """Points of all sketches together."""
        return sum(scheduled.points for scheduled in self.spaces.values())


class _Structures(Mapping[str, "Scheduled"]):
    """The default point of each sketch, made when it is asked for: scheduling takes a while."""

    def __init__(self, space: SearchSpace, func: Any, target: NATarget) -> None:
        self._space, self._func, self._target = space, func, target
        self._made: dict[str, Scheduled | None] = dict.fromkeys(space.sketches(func, target))

    def __getitem__(self, name: str) -> Scheduled:
        from tvm_na.schedules.base import Plan

        found = self._made[name]
        if found is None:
            found = self._made[name] = self._space.apply(self._func, self._target, Plan(sketch=name))
        if found is None:
            raise AssertionError(f"the space {self._space.name} refused its own sketch {name!r}")
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


def formulations_of(problem: Problem, target: NATarget) -> list[Formulation]:
    """The formulations of a problem with their spaces, the default first (imports TVM).

    Raises:
        ValueError: no search space serves the problem.
    """
    from tvm_na.schedules import spaces_for

    found, spaces = [], spaces_for(problem, target)
    ranks = [space.rank(problem, target) for space in spaces]
    for space in spaces[: ranks.count(min(ranks, default=0))]:
        for func in space.formulations(problem, target, 1):
            text = str(func.attrs["tvm_na.formulation"])
            found.append(Formulation(problem, space, func, text, _Structures(space, func, target)))
    if not found:
        raise ValueError(f"problem: required one that has a compiled kernel on {target.name}, got {problem}")
    return found


def label(text: str, among: Sequence[str]) -> str:
    """A formulation in a few words: what of it differs from the others of its problem."""
    fields, others = json.loads(text), [json.loads(other) for other in among]
    name = str(fields.pop("formulation", ""))

    words = [name] if len({other.get("formulation") for other in others}) > 1 else []
    for key, value in fields.items():
        if any(other.get(key) != value for other in others):
            words.append(("" if value else "no ") + key if isinstance(value, bool) else f"{key} {value}")
    return ", ".join(words).replace("_", " ") or name
