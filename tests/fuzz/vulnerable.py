"""A subject that goes wrong, for tests of the fuzzer; a module of its own, since its processes import little."""

from __future__ import annotations

import os
import random
import time
from typing import ClassVar

from tests.fuzz.subject import Subject


class Vulnerable(Subject):
    """Fails in every way."""

    name = "vulnerable"
    seconds: ClassVar[float] = 1.0

    def round(self, rng: random.Random) -> None:
        kind = rng.randrange(4)
        if kind == 0:
            raise KeyError("a wrong error")
        if kind == 1:
            os.abort()
        if kind == 2:
            time.sleep(60)
