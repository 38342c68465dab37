"""Every part of the suite, in the order in which they run."""

from __future__ import annotations

from benchmarks.suite.memory import MEMORY
from benchmarks.suite.models import MODELS
from benchmarks.suite.op import GROWTH, OP
from benchmarks.suite.start import START
from benchmarks.suite.training import TRAINING

PARTS = {part.name: part for part in (OP, GROWTH, START, MEMORY, TRAINING, MODELS)}
