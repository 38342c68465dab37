"""What a search space is, and how the tunable parameters of its schedules get their values.

A space schedules a PrimFunc by ``apply(func, target, plan) -> Scheduled | None``: None where it does not serve
``func`` on ``target``. Where loops can be nested in ways that differ by more than numbers, each way is a
*sketch* of the space; everything else is a *tunable parameter*. Each goes through :class:`Parameters`, which
takes the default, the value that a plan wishes for, or one that MetaSchedule draws; all leave the same trace.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar

from tvm_na.problems.registry import problem_from_json
from tvm_na.targets.target import NATarget
from tvm_na.te.common.formulation import Tile

#: The key of the block annotation under which a trace keeps the name of its sketch; recorded traces hold it as it is.
SKETCH = "tvm_na.structure"


@dataclass(frozen=True)
class Plan:
    """Which point of a space is wanted.

    Attributes:
        sketch: The name of the sketch; None for the default one.
        sample: Whether MetaSchedule draws the parameters.
        seed: For MetaSchedule's draws; None for another one each time.
        like: Values to take, by the name of the parameter; where one is no option, the nearest is taken.
            Parameters without one take their defaults.
        exact: The values of all parameters, by name or in their order, none of which may be anything but an option;
            None where there are none such.
        begins: The values of the first parameters, in their order, which must be options; those after them take their
            defaults.
        told: Called with each parameter as it is set.
    """

    sketch: str | None = None
    sample: bool = False
    seed: int | None = None
    like: Mapping[str, int] = field(default_factory=dict)
    exact: Mapping[str, int] | Sequence[int] | None = None
    begins: Sequence[int] = ()
    told: Callable[[Parameter], None] | None = None


@dataclass(frozen=True)
class Point:
    """A point of a search space: names and values that say all of a schedule.

    Attributes:
        formulation: Canonical JSON of the formulation, by which its space is found.
        sketch: The sketch's name.
        parameters: The values of all tunable parameters, by name, in their order.
    """

    formulation: str
    sketch: str
    parameters: Mapping[str, int]


@dataclass(frozen=True)
class Parameter:
    """A tunable parameter and its value.

    Attributes:
        name: What it says, in a few words.
        options: All values that it could have.
        value: The value it has.
    """

    name: str
    options: tuple[int, ...]
    value: int


@dataclass(frozen=True)
class Scheduled:
    """A scheduled function.

    Attributes:
        schedule: TVM's Schedule of a module with the function.
        sketch: The sketch's name.
        parameters: Those that were set, in the order in which the trace has them.
    """

    schedule: Any
    sketch: str
    parameters: tuple[Parameter, ...]

    @property
    def values(self) -> dict[str, int]:
        """The parameters' values by name."""
        return {parameter.name: parameter.value for parameter in self.parameters}

    @property
    def points(self) -> int:
        """How many points this sketch has."""
        return prod(len(parameter.options) for parameter in self.parameters)


class Parameters:
    """Sets the parameters of one schedule and remembers them.

    Attributes:
        made: Those so far.
    """

    def __init__(self, sch: Any, plan: Plan) -> None:
        self._sch, self._plan = sch, plan
        self.made: list[Parameter] = []

    def _wanted(self, name: str, options: Sequence[int], default: int) -> int:
        if self._plan.exact is not None:
            return self._exact(name, options, self._plan.exact)
        if len(self.made) < len(self._plan.begins):
            return self._exact(name, options, self._plan.begins)
        if name not in self._plan.like:
            return default
        return min(options, key=lambda option: abs(option - self._plan.like[name]))

    def _exact(self, name: str, options: Sequence[int], values: Mapping[str, int] | Sequence[int]) -> int:
        try:
            value = values[name] if isinstance(values, Mapping) else values[len(self.made)]
        except LookupError:
            raise ValueError(f"parameters: required a value for {name}, got none") from None
        if value not in options:
            raise ValueError(f"{name}: required one of {', '.join(map(str, options))}, got {value}")
        return value

    def check_all_taken(self) -> None:
        """ValueError if the plan has exact values of parameters that there are not."""
        exact = self._plan.exact
        if exact is not None and len(exact) != len(self.made):
            raise ValueError(f"parameters: required {len(self.made)} values, got {len(exact)}")

    def _made(self, name: str, options: Sequence[int], variable: Any) -> None:
        self.made.append(Parameter(name, tuple(options), int(self._sch.get(variable))))
        if self._plan.told is not None:
            self._plan.told(self.made[-1])

    def one_of(self, name: str, options: Sequence[int], default: int) -> Any:
        """One of ``options`` (distinct); ``default`` must be among them."""
        index = list(options).index(self._wanted(name, options, default))
        probability = [1.0 / len(options)] * len(options)
        decision = None if self._plan.sample else index
        variable = self._sch.sample_categorical(list(options), probability, decision=decision)
        self._made(name, options, variable)
        return variable

    def factors(self, name: str, loop: Any, extent: int, inner: int, limit: int | None = None) -> list[Any]:
        """Two factors whose product is the ``extent`` of ``loop``; ``inner`` is the default of the second.

        The second is at most ``limit``. Several loops of that extent may be split by them.
        """
        options = [d for d in divisors(extent) if d <= (limit or extent)]
        inner = self._wanted(name, options, inner)
        decision = None if self._plan.sample else [extent // inner, inner]
        found = self._sch.sample_perfect_tile(loop, n=2, max_innermost_factor=limit or extent, decision=decision)
        self._made(name, options, found[1])
        return list(found)

    def split(self, name: str, loop: Any, extent: int, inner: int, limit: int | None = None) -> list[Any]:
        """Split ``loop`` by :meth:`factors`."""
        return list(self._sch.split(loop, self.factors(name, loop, extent, inner, limit), preserve_unit_iters=True))


class Formulations(Sequence[Any]):
    """The PrimFuncs of a problem, each made when it is asked for: that takes a tenth of a kernel's build, or half."""

    def __init__(self, make: Callable[[Any], Any], tiles: Sequence[Any]) -> None:
        """``make(tile)`` gives the PrimFunc of a tile."""
        self._make, self._tiles = make, tiles
        self._made: dict[int, Any] = {}

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        if number not in self._made:
            self._made[number] = self._make(self._tiles[number])
        return self._made[number]


class SearchSpace(ABC):
    """The schedules of some formulations of one operator on one kind of machine.

    Attributes:
        name: For records and display.
        problems: The class of the problems.
        tile_types: The classes of the tiles of its formulations.
        schedule: How its functions are scheduled, a :class:`tvm_na.schedules.helpers.FuncSchedule`.
        note_at: The block at which traces note their sketch.
        all_sketches: The sketches, the default first, where all functions have the same.
    """

    name: ClassVar[str]
    problems: ClassVar[type]
    tile_types: ClassVar[tuple[type[Tile], ...]]
    schedule: ClassVar[type[Any]]
    note_at: ClassVar[str] = "out"
    all_sketches: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def serves(self, problem: Any, target: NATarget) -> bool:
        """Whether there is a kernel for a problem, which is of the class of the space's, on ``target``."""

    def rank(self, problem: Any, target: NATarget) -> int:
        """Of spaces that serve a problem those of a lower rank are preferred, of equal ones those that come first.

        Of equal ones it is not known which is faster: the tuner searches all of the lowest rank.
        """
        return 0

    def has(self, formulation: str) -> bool:
        """Whether a formulation, as canonical JSON, is one of the space's."""
        return any(json.dumps(tile.formulation) in formulation for tile in self.tile_types)

    @abstractmethod
    def formulations(self, problem: Any, target: NATarget, batch: int | None = None) -> Formulations:
        """The PrimFuncs of a problem that are worth scheduling, the default first (imports TVM).

        With a symbolic batch, or (for the tuner) the one given.
        """

    def schedule_for(self, problem: Any, tile: Any) -> type[Any]:
        """How the function of a problem with this tile is scheduled."""
        return self.schedule

    def sketches(self, func: Any, target: NATarget) -> tuple[str, ...]:
        """The names of the sketches for one of :meth:`formulations`, the default first."""
        return self.all_sketches

    def apply(self, func: Any, target: NATarget, plan: Plan = Plan()) -> Scheduled | None:
        """The schedule of a PrimFunc of this space; None for any other function or target (imports TVM).

        Args:
            func: One of :meth:`formulations`, unscheduled.
            target: The machine.
            plan: Which point of the space is wanted.

        Raises:
            ValueError: if there is no such sketch, or the plan's exact values are not those of its parameters.
        """
        tile = next(filter(None, (kind.of(func) for kind in self.tile_types)), None)
        if tile is None:
            return None
        problem = problem_from_json(str(func.attrs["tvm_na.problem"]))
        if not self.serves(problem, target):
            return None
        sketches = self.sketches(func, target)
        sketch = plan.sketch or sketches[0]
        if sketch not in sketches:
            raise ValueError(f"sketch: required one of {', '.join(sketches)}, got {sketch}")
        import tvm
        from tvm import s_tir

        sch = s_tir.Schedule(tvm.IRModule({"main": func}), seed=plan.seed)
        tune = Parameters(sch, plan)
        self.schedule_for(problem, tile)(sch, problem, tile, target, sketch, tune).build()
        tune.check_all_taken()
        sch.annotate(sch.get_sblock(self.note_at), SKETCH, sketch)
        return Scheduled(sch, sketch, tuple(tune.made))


def sketch_of(trace: Any) -> str | None:
    """The name of the sketch that ``trace`` was made with; None if it has none."""
    for inst in trace.insts:
        if inst.kind.name == "Annotate" and str(inst.attrs[0]) == SKETCH:
            return str(inst.inputs[1])
    return None


def divisors(n: int) -> list[int]:
    """The divisors of ``n`` from 1 to ``n``."""
    return [d for d in range(1, n + 1) if n % d == 0]


def largest_divisor(n: int, limit: int) -> int:
    """The largest divisor of ``n`` that is at most ``limit`` (and at least 1)."""
    return max(d for d in divisors(n) if d <= max(1, limit))
