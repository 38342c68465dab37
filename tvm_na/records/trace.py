"""What a recorded trace says, read without TVM, and without doing any of it.

MetaSchedule's trace is a program: a list of instructions, each ``[kind, inputs, attributes, outputs]``, and the
decisions of those that draw a number, ``[[instruction, decision], ...]``. A record is data here. The sketch and the
values of the tunable parameters are taken from it, a space of ours schedules with these, and what the trace says beyond
that is compared with what the space did.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from tvm_na.records.files import MALFORMED
from tvm_na.schedules.base import SKETCH

#: Where MetaSchedule's own steps would begin: it has no effect, and spaces do not write it.
_NO_EFFECT = "EnterPostproc"
#: What instructions that only look something up begin with.
_LOOKS_UP = "Get"


@dataclass(frozen=True)
class WrittenTrace:
    """What a trace says.

    Attributes:
        sketch: The name of the sketch.
        values: The values of the tunable parameters, in their order.
        instructions: How often it has each instruction: kind, constants among its inputs, attributes, decision. Their
            order and the names of loops are left out.
    """

    sketch: str
    values: tuple[int, ...]
    instructions: Counter[tuple[Hashable, ...]]

    def difference(self, made: WrittenTrace) -> str | None:
        """What it lacks of ``made``, or has beyond it, in words; None if they say the same."""
        for found in made.instructions - self.instructions:
            if not str(found[0]).startswith(_LOOKS_UP):  # of which a space may do more than it did
                return f"its trace lacks {_text(found)}, which its search space does"
        for found in self.instructions - made.instructions:
            return f"its trace has {_text(found)}, which its search space does not do"
        return None


def read_trace(trace: Any) -> WrittenTrace:
    """Read MetaSchedule's trace, a JSON object.

    Raises:
        ValueError: it is none, has no sketch, or draws something that is no tunable parameter.
    """
    try:
        instructions, decisions = trace
        drawn = dict(decisions)
        sketches, values, found = [], [], []
        for number, (kind, inputs, attributes, _) in enumerate(instructions):
            decision = None
            if kind.startswith("Sample"):
                decision = drawn.pop(number, None)
                values.append(_value(kind, attributes, decision))
            elif kind == "Annotate" and attributes[0] == SKETCH:
                sketches.append(str(inputs[1]).strip('"'))
            if kind != _NO_EFFECT:
                constants = [value for value in inputs if not _is_variable(value)]
                found.append((kind, *map(_hashable, (constants, attributes, decision))))
        (sketch,) = sketches
        if drawn:
            raise ValueError(f"decisions of instructions that draw nothing, {sorted(drawn)}")
        return WrittenTrace(sketch, tuple(values), Counter(found))
    except MALFORMED as error:
        raise ValueError(f"trace: required one of a search space, got another: {error}") from error


def _value(kind: str, attributes: Any, decision: Any) -> int:
    """What an instruction drew."""
    if kind == "SamplePerfectTile":
        value = decision[-1]  # of two factors, the inner one
    elif kind == "SampleCategorical" and decision >= 0:
        value = attributes[0][decision]
    else:
        raise ValueError(f"{kind} with {decision}")
    if type(value) is not int:
        raise ValueError(f"{kind} of {value!r}")
    return value


def _is_variable(value: Any) -> bool:
    """Whether an input names a block, a loop or a number of the trace; constant strings are quoted once more."""
    return isinstance(value, str) and not value.startswith('"')


def _hashable(value: Any) -> Hashable:
    if isinstance(value, list):
        return tuple(map(_hashable, value))
    if isinstance(value, dict):
        return tuple((name, _hashable(inner)) for name, inner in sorted(value.items()))
    found: Hashable = value
    return found


def _text(instruction: tuple[Hashable, ...]) -> str:
    kind, *rest = instruction
    words = " ".join(str(part) for part in rest if part not in ((), None))
    return f"{kind} {words[:200]}".rstrip()
