"""What every problem is to those who launch, measure, record and compare kernels, whatever these compute.

A problem is a value: a kernel is specialised on all that is in it. The batch is not in it.
"""

from __future__ import annotations

import abc
import dataclasses
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from typing_extensions import Self

#: Kernels count elements in 32 bits, asynchronous copies on GPUs bytes.
MAX_ELEMENTS = 2**31 - 1

#: Bytes of a number.
ITEM_BYTES = {"int8": 1, "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}

#: Dtypes of half precision, whose sums are float32.
HALVES = ("float16", "bfloat16")

Role = Literal["input", "scale", "output", "scratch"]


@dataclass(frozen=True)
class Argument:
    """One tensor of a kernel's call.

    Attributes:
        name: Such as ``query``.
        shape: Without the batch.
        dtype: By name.
        role: ``input``; ``scale``, the factor of the scores ``[1]``; ``output``, which the kernel writes; ``scratch``,
            what it writes and reads again.
        has_batch: Whether it is ``[batch, *shape]``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    role: Role = "input"
    has_batch: bool = True

    @property
    def elements(self) -> int:
        """Its elements, for a batch of one."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Its bytes, for a batch of one."""
        return self.elements * ITEM_BYTES[self.dtype]

    def shape_for(self, batch: Any) -> tuple[Any, ...]:
        """Its shape in a call with a batch, a number or an expression."""
        return (batch, *self.shape) if self.has_batch else self.shape


@dataclass(frozen=True)
class Problem(abc.ABC):
    """What a kernel can compute. Subclasses are frozen dataclasses.

    Attributes:
        operator: What tells its JSON from that of other problems, under the key ``operator``; attention has none.
        packs_weights: Whether a kernel's weights are packed as its formulation says.
        spatial: Sizes of the spatial axes.
        dtype: The dtype of tensors.
        accum_dtype: The dtype of sums.
        useful_flops: Multiply-adds that no implementation can leave out, times two, for a batch of one.
    """

    operator: ClassVar[str | None] = None
    packs_weights: ClassVar[bool] = False

    if TYPE_CHECKING:  # fields of some subclasses, properties of others

        @property
        def spatial(self) -> tuple[int, ...]: ...
        @property
        def dtype(self) -> str: ...
        @property
        def accum_dtype(self) -> str: ...
        @property
        def useful_flops(self) -> int: ...

    @property
    def rank(self) -> int:
        """The number of spatial axes."""
        return len(self.spatial)

    @property
    def uses_dots(self) -> bool:
        """Whether kernels for a CPU with dot products of bfloat16 are others than those for one without."""
        return False

    @classmethod
    @abc.abstractmethod
    def make(cls, *args: Any, **options: Any) -> Self:
        """A problem with the operator's defaults; integers count for every axis of ``spatial``."""

    @abc.abstractmethod
    def arguments(self) -> tuple[Argument, ...]:
        """The tensors of a kernel's call in their order, outputs last."""

    def outputs(self) -> list[Argument]:
        """What a kernel writes, of :meth:`arguments`."""
        return [argument for argument in self.arguments() if argument.role == "output"]

    def scratch(self) -> tuple[Argument, ...]:
        """What follows them in a call of a kernel for GPUs, whose caller allocates it."""
        return ()

    def fields(self) -> dict[str, Any]:
        """The attributes by name, of which :meth:`of_fields` makes the same problem."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @classmethod
    def of_fields(cls, fields: dict[str, Any]) -> Self:
        """The problem with these :meth:`fields`."""
        return cls(**fields)

    def with_dtype(self, dtype: str) -> Self:
        """The same problem in another dtype."""
        return self.of_fields({**self.fields(), "dtype": dtype})

    @abc.abstractmethod
    def distance(self, other: Problem) -> float | None:
        """How unlike two problems are to a schedule; None if a schedule of one is none of the other.

        Sizes count by the logarithm of their ratio.
        """

    def unsupported(self, kind: str) -> str:
        """What of it has no compiled kernel on a kind of targets on which it has none, in words."""
        if kind == "cuda":
            return "no search space for GPUs serves it"
        return f"compiled kernels are float32 and float64, the problem is {self.dtype}"

    @property
    def bytes(self) -> int:
        """Bytes of all tensors of a call but the scale, for a batch of one."""
        return sum(argument.bytes for argument in self.arguments() if argument.role != "scale")

    @property
    def largest_copy(self) -> int:
        """A bound on the elements per sample of the largest tensor of a kernel for CPUs, packed copies included."""
        return max(argument.elements for argument in self.arguments())

    @property
    def largest_constant(self) -> int:
        """A bound on the elements of what has no batch, as kernels for CPUs copy it."""
        return max((argument.elements for argument in self.arguments() if not argument.has_batch), default=0)

    @property
    def counted_per_element(self) -> int:
        """How far a kernel for GPUs counts, at most, over the elements of a tensor.

        Its last blocks count positions outside of the map before they leave them out: at most as many again.
        """
        return 2

    def largest_batch(self, kind: str) -> int:
        """The samples that a kernel takes at once, 0 if one is too large.

        Args:
            kind: Of the target: ``llvm`` or ``cuda``.
        """
        if self.largest_constant > MAX_ELEMENTS:
            return 0
        if kind != "cuda":
            return MAX_ELEMENTS // self.largest_copy
        tensors = (*self.arguments(), *self.scratch())
        most = max(argument.elements for argument in tensors if argument.has_batch)
        return MAX_ELEMENTS // (self.counted_per_element * most)

    def reference_elements(self, samples: int) -> int:
        """float64 numbers that computing what is right, of so many samples, holds at once on its device."""
        return 0

    def to_json(self) -> str:
        """A canonical JSON text; equal problems give equal texts."""
        head = {} if self.operator is None else {"operator": self.operator}
        return json.dumps({**head, **self.fields()}, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The problem that :meth:`to_json` wrote.

        Raises:
            ValueError: it is of another operator, or has other fields.
        """
        fields = json.loads(text)
        if not isinstance(fields, dict) or fields.pop("operator", None) != cls.operator:
            kind = "no operator" if cls.operator is None else f'"operator":"{cls.operator}"'
            raise ValueError(f"problem: required a JSON object with {kind}, got {text}")
        return cls.of_fields({name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()})


def ratio(a: float, b: float) -> float:
    """How far two sizes are from each other: the logarithm of their ratio."""
    return abs(math.log2(a / b))


def axes_text(values: tuple[int, ...]) -> str:
    """A value per axis as text, such as ``7`` or ``7x5``."""
    return str(values[0]) if len(set(values)) == 1 else "x".join(map(str, values))
