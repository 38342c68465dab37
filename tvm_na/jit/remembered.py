"""A dictionary that forgets what has not been wanted for long, and costs no more than one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable
from typing import TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Remembered(dict[K, V]):
    """The last ``most`` keys that were new or wanted again, and at most as many before them.

    A key that is found costs what it costs in a dictionary: nothing is moved on that path. When ``most`` keys have
    come, they become the older ones, and the older ones are forgotten; an older one that is wanted is young again.

    ``remembered.get(key)`` finds young ones; ``remembered[key]`` and :meth:`or_make` find all.
    """

    __slots__ = ("_older", "most")

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self._older: dict[K, V] = {}

    def __setitem__(self, key: K, value: V) -> None:
        if len(self) >= self.most and key not in self:
            self._older = dict(self)
            super().clear()
        super().__setitem__(key, value)

    def __missing__(self, key: K) -> V:
        value = self._older.pop(key)
        self[key] = value
        return value

    def or_make(self, key: K, make: Callable[[], V]) -> V:
        """The value of a key, made now where it is forgotten or new."""
        with contextlib.suppress(KeyError):
            return self[key]
        value = self[key] = make()
        return value

    def clear(self) -> None:
        """Forget all."""
        self._older = {}
        super().clear()
