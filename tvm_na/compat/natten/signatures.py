"""Reading a call that releases of NATTEN read differently.

What follows the kernel size was ``dilation`` up to 0.17 and is ``stride`` since 0.20; modules had a bias by default up
to 0.15. A call is bound to the signature of every release. Those that cannot have been meant, for a keyword they lack
or a type they do not take, drop out. If the others agree, that is what it means.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tvm_na.compat.natten import release

Meaning = dict[str, Any]  # argument -> value, of the newest signature and whatever older ones had besides


class Reading:
    """The signature of a callable in the releases of one era, as a function that returns what a call means.

    A call is read by a ``last_resort`` only if it fits no other signature, or if that release is assumed.
    """

    def __init__(self, era: str, meaning: Callable[..., Meaning], last_resort: bool = False) -> None:
        self.era, self.meaning, self.last_resort = era, meaning, last_resort
        parameters = inspect.signature(meaning).parameters.values()
        self.names = tuple(p.name for p in parameters)
        self.positional = tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)
        self.defaults = {p.name: p.default for p in parameters if p.default is not p.empty}

    def of(self, args: Sequence[Any], named: dict[str, Any]) -> Meaning | None:
        """What the call means, or None if it does not fit the signature."""
        by_position = dict(zip(self.positional, args, strict=False))
        values = {**self.defaults, **by_position, **named}
        fits = len(args) <= len(self.positional) and not by_position.keys() & named.keys()
        return self.meaning(**values) if fits and set(values) == set(self.names) else None


def signature_of(defaults: Meaning, positional: Iterable[str], by_name: Iterable[str] = ()) -> inspect.Signature:
    """Arguments with these defaults, some by position too, some by name alone."""
    plain = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=defaults[n]) for n in positional]
    named = [inspect.Parameter(n, inspect.Parameter.KEYWORD_ONLY, default=defaults[n]) for n in by_name]
    return inspect.Signature(plain + named)


def from_defaults(defaults: Meaning, positional: Iterable[str], by_name: Iterable[str] = ()) -> Callable[..., Meaning]:
    """For a :class:`Reading`: a call with these arguments means the defaults of all others."""

    def meaning(**named: Any) -> Meaning:
        return {**defaults, **named}

    meaning.__signature__ = signature_of(defaults, positional, by_name)  # type: ignore[attr-defined]
    return meaning


def value_or(value: Any, default: Any) -> Any:
    """``value``, or ``default`` in place of None."""
    return default if value is None else value


@dataclass
class Fit:
    """A reading that a call fits, and what the call means by it."""

    era: str
    meaning: Meaning
    last_resort: bool


def _same(a: Any, b: Any) -> bool:
    return a is b or (not isinstance(a, torch.Tensor) and not isinstance(b, torch.Tensor) and bool(a == b))


def _differing(fits: Sequence[Fit]) -> list[str]:
    """The arguments on which readings do not agree."""
    first = fits[0].meaning
    return [name for name in first if not all(_same(first[name], fit.meaning[name]) for fit in fits)]


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
    bound = [Fit(r.era, m, r.last_resort) for r in readings for m in (r.of(args, named),) if m is not None]
    if not bound:
        signatures = "; ".join(f"{r.era}: {', '.join(r.names)}" for r in readings)
        got = ", ".join([f"{len(args)} positional", *named])
        raise TypeError(f"{function}: required the arguments of a release of NATTEN ({signatures}), got {got}")
    fits, refusals = [], []
    for fit in bound:
        try:
            fits.append(Fit(fit.era, check(fit.meaning), fit.last_resort))
        except (TypeError, ValueError) as refusal:
            refusals.append(refusal)
    if not fits:
        raise refusals[0]
    told = release.era_of_assumed([reading.era for reading in readings])
    as_told = [fit for fit in fits if fit.era == told]
    fits = as_told or [fit for fit in fits if not fit.last_resort] or fits
    differing = _differing(fits)
    if not differing:
        return fits[0].meaning
    if differing == [newest_wins] and fits[0].era == readings[0].era:
        warnings.warn(
            f"{function}: releases of NATTEN read this call differently: {_listed(fits, differing)}. The newest is "
            "believed; name the arguments, or call tvm_na.compat.natten.assume_release",
            stacklevel=3,
        )
        return fits[0].meaning
    raise ValueError(
        f"{differing[0]}: required {function} with arguments by name, or a release given to "
        f"tvm_na.compat.natten.assume_release, got a call that releases of NATTEN read differently: "
        f"{_listed(fits, differing)}"
    )


def _listed(fits: Sequence[Fit], names: Sequence[str]) -> str:
    """What each release reads, newest first, of these arguments."""
    return ", ".join(f"{fit.era} as " + " ".join(f"{name}={fit.meaning[name]!r}" for name in names) for fit in fits)
