"""Calls of kernels on a GPU: inputs rotate through more memory than its last cache holds.

A kernel that does what CUDA forbids leaves its process without a working GPU: every later call fails too. Such a
process says what happened and ends.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tvm_na.jit.scratch import with_scratch
from tvm_na.measure.clocks import ROTATED_BYTES
from tvm_na.problems.registry import Problem
from tvm_na.reference.case import Case
from tvm_na.reference.cases import budget_of, make_case

if TYPE_CHECKING:
    from torch import Tensor

#: Copies of inputs and outputs at most.
_MOST_COPIES = 64


def rotating(call: Callable[..., object], sets: Sequence[Sequence[Any]]) -> Callable[[], object]:
    """A function that calls ``call`` with one set of arguments after the other."""
    turn = itertools.cycle(sets)
    return lambda: call(*next(turn))


def copies_for(bytes_of_set: int) -> int:
    """How many sets of arguments of so many bytes rotate: enough that the last cache holds none until its next turn."""
    return max(2, min(_MOST_COPIES, -(-ROTATED_BYTES // max(1, bytes_of_set))))


@dataclass(frozen=True)
class Sets:
    """The arguments that kernels of a problem are measured with.

    Attributes:
        arguments: All arguments of a call, set by set; those of the case first.
        outputs: The outputs in the first set.
    """

    case: Case
    arguments: list[tuple[Tensor, ...]]
    outputs: list[Tensor]

    @classmethod
    def of(cls, problem: Problem, case: Case) -> Sets:
        """Copies of the inputs of a case of ``problem``, each with outputs of its own; what has no batch is shared."""
        outputs = case.outputs()
        inputs = [(t, a.has_batch) for t, a in zip(case.inputs, problem.arguments(), strict=False)]
        rotated = [*(t for t, has_batch in inputs if has_batch), *outputs]
        count = copies_for(sum(t.numel() * t.element_size() for t in rotated))
        others = [
            (*(t.clone() if has_batch else t for t, has_batch in inputs), *case.outputs()) for _ in range(count - 1)
        ]
        return cls(case, [(*case.inputs, *outputs), *others], outputs)

    def checked(self, kernel: Callable[..., None], budget: float) -> Callable[[], object]:
        """A rotating call of ``kernel``, whose numbers are right; WrongNumbers if they are not."""
        for out in self.outputs:
            out.fill_(float("nan"))
        kernel(*self.arguments[0])
        self.case.check(self.outputs, budget)
        return rotating(kernel, self.arguments)


#: The sets in use, at most one: they may take a quarter of the GPU's memory.
_sets: dict[tuple[Problem, int, str], Sets] = {}


def sets_of(problem: Problem, batch: int, device: str) -> Sets:
    """The sets of a problem, those of before if they are the same."""
    key = problem, batch, device
    if key not in _sets:
        _sets.clear()
        _sets[key] = Sets.of(problem, make_case(problem, batch, device))
    return _sets[key]


def checked_call(file: Path, problem: Problem, batch: int, device: str) -> Callable[[], object]:
    """A rotating call of the kernel in a library, whose numbers are right; WrongNumbers if they are not."""
    from tvm_na.jit import runtime
    from tvm_na.te import ENTRY

    sets = sets_of(problem, batch, device)
    try:
        return sets.checked(with_scratch(runtime.load(file, ENTRY, "cuda"), problem), budget_of(problem))
    except Exception:
        _sets.clear()  # a kernel that goes wrong may have written anywhere
        raise


def prepare(device: str) -> None:
    """Make this process use a GPU (in the worker); an error here says that there is none that works."""
    import torch

    torch.cuda.set_device(device)
    torch.zeros(1, device=device).add_(1)
    torch.cuda.synchronize()


def works() -> bool:
    """Whether this process can still use its GPU; after a kernel's illegal access, for one, it cannot."""
    import torch

    try:
        torch.cuda.synchronize()
    except RuntimeError:  # PyTorch's class for CUDA's errors derives from it
        return False
    return True
