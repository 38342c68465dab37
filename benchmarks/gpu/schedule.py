"""The steps of the run, in their order: what is told first is worth the most."""

from __future__ import annotations

from benchmarks.gpu import ceilings, compared, kernels, launches, nat, points, profiled, recorded, sanitized
from benchmarks.gpu.steps import Step

#: Their seconds add up to what a run has, but for starting and packing.
STEPS = (
    Step("compiling", 0.0, compared.compiled_items, compared.compile_ahead, patience=180.0, beside=4),
    Step("ceilings", 15.0, ceilings.items, ceilings.ceiling),
    Step(points.RIGHT, 60.0, kernels.all_items, kernels.right),
    Step("table", 20.0, kernels.timed_items, kernels.timed),
    Step(points.POINTS, 80.0, points.items, points.point),
    Step(points.BEST, 20.0, points.best_items, points.best),
    Step("records", 5.0, recorded.items, recorded.record),
    Step("peers", 110.0, compared.items, compared.compared, patience=60.0),
    Step("ncu", 70.0, profiled.items, profiled.profile, patience=45.0),
    Step("sanitizer", 60.0, sanitized.items, sanitized.sanitize, patience=50.0),
    Step("nat", 60.0, nat.items, nat.nat, patience=40.0),
    Step("launches", 40.0, launches.items, launches.launched),
)
