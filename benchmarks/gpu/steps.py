"""What a step of the run is: its items, the function that each is given to, and how long it may take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.gpu.folder import RunFolder
    from benchmarks.gpu.results import Results


@dataclass(frozen=True)
class Item:
    """A part of a step that succeeds or fails alone.

    Attributes:
        name: Under which its result is kept.
        arguments: Of the step's function; they are sent to another process.
    """

    name: str
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Step:
    """A part of the run that has a time of its own.

    Attributes:
        seconds: How long it may take, with what the steps before it left.
        items: Its items, in their order, from what is in the folder and what was found so far.
        function: Called with the arguments of each item in a worker process; what it returns becomes JSON.
        patience: Seconds after which an item is given up, as one that hangs.
        beside: In how many processes it runs beside the others, from the start to the end; 0 for one that has its turn.
    """

    name: str
    seconds: float
    items: Callable[[RunFolder, Results], Sequence[Item]]
    function: Callable[..., dict[str, Any]]
    patience: float = 20.0
    beside: int = 0
