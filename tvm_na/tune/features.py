"""Points of search spaces: read from a trace, written into one, and as numbers that a cost model sees."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tvm_na.tune.tasks import Formulation

_COLUMNS = 96
#: Of so many mutations, the one that the cost model likes best is proposed.
_PROPOSED = 12
#: How often one, two and three parameters are changed.
_CHANGES = (0.6, 0.3, 0.1)


def samples_of(trace: Any) -> list[Any]:
    """The instructions of a trace that draw a parameter."""
    return [inst for inst in trace.insts if inst.kind.name.startswith("Sample")]


def _value(trace: Any, inst: Any) -> int:
    decision = trace.get_decision(inst)
    if inst.kind.name == "SamplePerfectTile":
        return int(decision[-1])
    return int(inst.attrs[0][int(decision)])


def read_point(formulation: Formulation, trace: Any) -> tuple[str, dict[str, int]]:
    """The sketch and the parameters of a trace of a formulation."""
    from tvm_na.schedules.base import sketch_of

    sketch = sketch_of(trace) or next(iter(formulation.spaces))
    names = [parameter.name for parameter in formulation.spaces[sketch].parameters]
    values = [_value(trace, inst) for inst in samples_of(trace)]
    return sketch, dict(zip(names, values, strict=True))


def with_changes(trace: Any, changes: Mapping[int, tuple[int, tuple[int, ...]]]) -> Any:
    """``trace`` with other parameters: by their number, the new value and all options."""
    samples = samples_of(trace)
    for number, (value, options) in changes.items():
        inst = samples[number]
        tile = inst.kind.name == "SamplePerfectTile"  # its options are the divisors of its extent
        decision = [options[-1] // value, value] if tile else [int(o) for o in inst.attrs[0]].index(value)
        trace = trace.with_decision(inst, decision, True)
    return trace


class Features:
    """What the cost model sees of a candidate: its problem, formulation, sketch and parameters as numbers.

    Columns are named, so that a parameter in one formulation tells something about the same one in another;
    what a candidate does not have is missing, which XGBoost can deal with. (TVM's own features take 50 ms for a
    candidate, since it lowers them; a search looks at thousands.)
    """

    def __init__(self, formulations: Sequence[Formulation]) -> None:
        self._columns: dict[str, int] = {}
        self._formulations = formulations
        self._fixed = [self.row(_describe(f), (math.nan,) * _COLUMNS) for f in formulations]

    def row(self, values: Mapping[str, float], base: Sequence[float]) -> list[float]:
        """``base`` with other values in the columns of these names."""
        row = list(base)
        for name, value in values.items():
            column = self._columns.setdefault(name, len(self._columns))
            if column < _COLUMNS:
                row[column] = value
        return row

    def of(self, number: int, sketch: str, parameters: Mapping[str, int]) -> list[float]:
        """The features of a point of a formulation."""
        values = {name: float(value) for name, value in parameters.items()}
        return self.row(values | {f"sketch {sketch}": 1.0}, self._fixed[number])

    def __call__(self, task_name: str, trace: Any) -> list[float]:
        """The features of a trace of the formulation with the number ``task_name``."""
        number = int(task_name)
        return self.of(number, *read_point(self._formulations[number], trace))


def _describe(formulation: Formulation) -> dict[str, float]:
    problem = formulation.problem
    values: dict[str, float] = {}
    for name, value in json.loads(problem.to_json()).items():
        if isinstance(value, list):
            values |= {f"{name} {axis}": float(n) for axis, n in enumerate(value)}
        elif isinstance(value, (int, float)):
            values[name] = float(value)
    for name, value in json.loads(formulation.text).items():
        if isinstance(value, (int, float)):
            values[f"formulation {name}"] = float(value)
        else:
            values[f"formulation {name} {value}"] = 1.0
    return values


class Mutator:
    """Changes a few parameters of a trace; TVM's own mutators change tile sizes, but no plain categorical ones."""

    def __init__(
        self,
        formulation: Formulation,
        features: Callable[[str, Mapping[str, int]], Sequence[float]],
        score: Callable[[Sequence[Sequence[float]]], Sequence[float] | None],
        seed: int,
    ) -> None:
        """A mutator for one formulation.

        ``features`` gives those of a point, by its sketch and parameters; ``score`` the cost model's scores of several
        points, or None before it is trained.
        """
        self._formulation, self._features, self._score = formulation, features, score
        self._rng = random.Random(seed)

    def __call__(self, trace: Any) -> Any:
        """A mutation of ``trace``, the best of several as far as the cost model knows; None if there is none."""
        sketch, point = read_point(self._formulation, trace)
        parameters = self._formulation.spaces[sketch].parameters
        free = [number for number, parameter in enumerate(parameters) if len(parameter.options) > 1]
        if not free:
            return None
        proposals = [self._changes(parameters, list(point.values()), free) for _ in range(_PROPOSED)]
        rows = []
        for changes in proposals:
            other = {parameters[number].name: value for number, (value, _) in changes.items()}
            rows.append(self._features(sketch, point | other))
        scores = self._score(rows)
        best = 0 if scores is None else max(range(len(scores)), key=lambda i: scores[i])
        return with_changes(trace, proposals[best])

    def _changes(
        self, parameters: Sequence[Any], values: Sequence[int], free: Sequence[int]
    ) -> dict[int, tuple[int, tuple[int, ...]]]:
        rng = self._rng
        count = min(len(free), rng.choices(range(1, len(_CHANGES) + 1), _CHANGES)[0])
        changes = {}
        for number in rng.sample(free, count):
            options = parameters[number].options
            at = options.index(values[number])
            near = [i for i in (at - 1, at + 1) if 0 <= i < len(options)]
            far = [i for i in range(len(options)) if i != at]
            changes[number] = (options[rng.choice(near if rng.random() < 0.5 else far)], options)
        return changes
