"""Reading a call that releases of NATTEN read differently.

What follows the kernel size was ``dilation`` up to 0.17 and is ``stride`` since 0.20; modules had a bias by default up
to 0.15. A call is bound to the signature of every release. Those that cannot have been meant, for a keyword they lack
or a type they do not take, drop out. If the others agree, that is what it means.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tvm_na.compat.natten import release

Meaning = dict[str, Any]  # argument -> value, of the newest signature and whatever older ones had besides
#: In place of a default, of an argument that must be given.
REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Reading:
    """The signature of a callable in the releases of one era, and what a call means that fits it.

    Attributes:
        era: Its first release.
        defaults: Of its arguments, or :data:`REQUIRED`, and of those of other releases.
        positional: Arguments by position or name.
        by_name: Arguments by name alone.
        last_resort: Whether a call is read so only if it fits no other signature, or if that release is assumed.
        translated: Arguments under the names of the newest release.
    """

    era: str
    defaults: Meaning
    positional: Sequence[str]
    by_name: Sequence[str] = ()
    last_resort: bool = False
    translated: Callable[[Meaning], Meaning] = dict

    @property
    def names(self) -> tuple[str, ...]:
        """All arguments."""
        return (*self.positional, *self.by_name)

    def of(self, args: Sequence[Any], named: dict[str, Any]) -> Meaning | None:
        """What the call means, or None if it does not fit the signature."""
        by_position = dict(zip(self.positional, args, strict=False))
        own = {name: self.defaults[name] for name in self.names if self.defaults[name] is not REQUIRED}
        values = {**own, **by_position, **named}
        fits = len(args) <= len(self.positional) and not by_position.keys() & named.keys()
        return {**self.defaults, **self.translated(values)} if fits and set(values) == set(self.names) else None


def value_or(value: Any, default: Any) -> Any:
    """``value``, or ``default`` in place of None."""
    return default if value is None else value


def _same(a: Any, b: Any) -> bool:
    return a is b or (not isinstance(a, torch.Tensor) and not isinstance(b, torch.Tensor) and bool(a == b))


def read(
    function: str,
    readings: Sequence[Reading],
    args: Sequence[Any],
    named: dict[str, Any],
    check: Callable[[Meaning], Meaning],
    newest_wins: str = "",
) -> Meaning:
    """What a call means.

    Args:
        function: Its name, for errors.
        readings: Newest first. All must return the same keys.
        args, named: The call.
        check: The meaning with its values in one form (an integer and a tuple of it may mean the same); a TypeError
            or ValueError if they are not what the signature wants.
        newest_wins: An argument on which releases may disagree: the newest is believed, with a warning.

    Raises:
        TypeError: for a call that fits no release; what the newest refuses, if it is its values.
        ValueError: for one that releases read differently, unless :func:`release.assume_release` says which counts.
    """
    bound = [(reading, reading.of(args, named)) for reading in readings]
    if all(meaning is None for _, meaning in bound):
        signatures = "; ".join(f"{r.era}: {', '.join(r.names)}" for r in readings)
        got = ", ".join([f"{len(args)} positional", *named])
        raise TypeError(f"{function}: required the arguments of a release of NATTEN ({signatures}), got {got}")
    fits, refusals = [], []
    for reading, meaning in bound:
        try:
            fits += [] if meaning is None else [(reading, check(meaning))]
        except (TypeError, ValueError) as refusal:
            refusals.append(refusal)
    if not fits:
        raise refusals[0]
    told = release.era_of_assumed([reading.era for reading in readings])
    as_told = [fit for fit in fits if fit[0].era == told]
    fits = as_told or [fit for fit in fits if not fit[0].last_resort] or fits
    newest, first = fits[0]
    differing = [name for name in first if not all(_same(first[name], meaning[name]) for _, meaning in fits)]
    if not differing:
        return first
    listed = ", ".join(f"{r.era} as " + " ".join(f"{name}={m[name]!r}" for name in differing) for r, m in fits)
    if differing == [newest_wins] and newest.era == readings[0].era:
        warnings.warn(
            f"{function}: releases of NATTEN read this call differently: {listed}. The newest is "
            "believed; name the arguments, or call tvm_na.compat.natten.assume_release",
            stacklevel=3,
        )
        return first
    raise ValueError(
        f"{differing[0]}: required {function} with arguments by name, or a release given to "
        f"tvm_na.compat.natten.assume_release, got a call that releases of NATTEN read differently: {listed}"
    )
