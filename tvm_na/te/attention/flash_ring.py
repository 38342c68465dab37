"""The ring of the flash formulation: steps of columns on their way to shared memory while one before is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tvm import tirx
from tvm.script.ir_builder import tirx as T

from tvm_na.te.attention import flash_device as device
from tvm_na.te.attention.flash_copies import Cursor
from tvm_na.te.attention.flash_layout import Layout
from tvm_na.te.common.threads import number, only_where

#: Begins the copies of a step: to where in shared memory, of which round, and from which position on.
CopyStep = Callable[[Any, Any, Sequence[Any]], None]


class Ring:
    """Goes through a box of columns, once or several times (*rounds*).

    Attributes:
        now: The step that is computed.
        steps: Of a round.
        total: Of all rounds.
    """

    def __init__(self, layout: Layout, box: tuple[list[Any], list[Any]], copy: CopyStep, rounds: int = 1) -> None:
        """Of the box from ``box[0]`` to ``box[1]``; each step is copied by ``copy``."""
        self._layout, self._copy = layout, copy
        begins = [0 if rounds == 1 else tirx.const(0, "int32"), *box[0]]
        self._ahead, self.now = (
            Cursor(name, begins, [rounds, *box[1]], layout.shape.keys) for name in ("ahead", "now")
        )
        z, y, x = (end - begin for begin, end in zip(*box, strict=True))
        keys = layout.shape.keys
        self.steps = number("steps", z * y * ((x + (keys - 1)) // keys), "int32")
        self.total = self.steps if rounds == 1 else number("total_steps", self.steps * rounds, "int32")

    def begin(self) -> None:
        """Begin the copies of the first steps, all but one that there are places for; there is one step at least."""
        for stage in range(self._layout.shape.stages - 1):
            self._fetch(stage, stage or None)

    @contextmanager
    def step(self, n: Any) -> Iterator[Any]:
        """What is done in the n-th step, of all rounds; yields where in shared memory its columns are."""
        stages = self._layout.shape.stages
        T.evaluate(device.wait(stages - 2))
        barrier()
        following = n + (stages - 1)
        self._fetch(following % stages, following)
        yield self._layout.ring + n % stages * self._layout.stage
        self.now.advance()

    def _fetch(self, stage: Any, step: Any) -> None:
        """Begin the copies of a step, if there is one; a group of copies is made of them in any case."""
        with only_where(None if step is None else step < self.total):
            base = number("to", self._layout.ring + stage * self._layout.stage, "int32")
            turn, *position = self._ahead.position
            self._copy(base, turn, position)
            self._ahead.advance()
        T.evaluate(device.commit())


def barrier() -> None:
    """All threads of a block wait for each other."""
    from tvm.tirx.op import tvm_storage_sync

    T.evaluate(tvm_storage_sync("shared.dyn"))
