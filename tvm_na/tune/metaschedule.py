"""TVM's MetaSchedule, imported the way it can be, and the parts of it that are ours.

MetaSchedule takes builders, runners, mutators and the like as objects of classes that derive from its own. Here
they are thin: each hands its call to a function of ours. Classes are made inside functions, since nothing may
import TVM before it is needed.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

from tvm_na.measure.timing import require_extra

_SHARPNESS = 8


def import_metaschedule() -> Any:
    """The module ``tvm.s_tir.meta_schedule``.

    Raises:
        RuntimeError: a package that tuning needs is missing, or tvm_ffi is one that crashes.
    """
    check_packages()
    skip_tensor_intrinsics()
    return importlib.import_module("tvm.s_tir.meta_schedule")


def check_packages() -> None:
    """RuntimeError if tuning cannot work with the packages that are installed; imports none of them."""
    require_extra("tuning", "tune", "xgboost", "cloudpickle", "psutil")
    version = metadata.version("apache-tvm-ffi")
    if [int(n) for n in version.split(".")[:3]] >= [0, 1, 15]:
        # It satisfies TVM's own range, and segfaults in tvm.ir.save_json, which every record goes through.
        raise RuntimeError(f"tuning: required apache-tvm-ffi 0.1.14.post1 (newer ones crash), got {version}")


def skip_tensor_intrinsics() -> None:
    """Put an empty module in place of ``tvm.s_tir.tensor_intrin``.

    MetaSchedule imports it in every process. That takes 25 to 45 s (TVMScript's decorator calls
    ``inspect.stack()`` for each of 250 functions), longer than MetaSchedule's own time-out for a build, and gives
    tensor instructions, of which kernels for CPUs use none.
    """
    name = "tvm.s_tir.tensor_intrin"
    if name not in sys.modules:
        parent = importlib.import_module("tvm.s_tir")
        sys.modules[name] = types.ModuleType(name)
        parent.tensor_intrin = sys.modules[name]  # type: ignore[attr-defined]


def _derived(base: Any, **methods: Any) -> Any:
    """An object of a class that derives from one of MetaSchedule's."""
    from tvm.ir.utils import derived_object

    return derived_object(type("Derived", (base,), methods))()


def make_mutator(mutate: Callable[[Any], Any]) -> Any:
    """A mutator: ``mutate(trace)`` gives another trace, or None if it cannot."""
    return _derived(
        import_metaschedule().mutator.PyMutator,
        _initialize_with_tune_context=lambda self, context: None,
        apply=lambda self, trace, _: mutate(trace),
        clone=lambda self: make_mutator(mutate),
    )


def make_model(features: Callable[[str, Any], Sequence[float]], warm_up: int, seed: int) -> Any:
    """MetaSchedule's XGBoost cost model, on features of ours: ``features(task name, trace)``.

    Its scores stand for the time of the best over that of the candidate. ``score(rows)`` gives those of features,
    and None before there are ``warm_up`` measurements; ``predict`` sharpens them for the search, whose choice of
    parents is proportional to them.
    """
    ms = import_metaschedule()
    import numpy as np
    import tvm
    from tvm.ir.utils import derived_object

    def extract_from(_: Any, context: Any, candidates: Any) -> list[Any]:
        name = str(context.task_name)
        rows = (np.array([features(name, candidate.sch.trace)], "float32") for candidate in candidates)
        return [tvm.runtime.tensor(row) for row in rows]

    extractor = _derived(ms.feature_extractor.PyFeatureExtractor, extract_from=extract_from)
    rng = np.random.default_rng(seed)

    model_base: Any = ms.cost_model.XGBModel._cls

    @derived_object
    class Model(model_base):
        def knows(self) -> bool:
            return self.booster is not None and self.data_size >= self.num_warmup_samples

        def predict(self, context: Any, candidates: Any) -> Any:
            if not self.knows():
                return rng.uniform(size=len(candidates))  # TVM takes them from NumPy's shared generator
            return np.clip(super().predict(context, candidates), 0.0, None) ** _SHARPNESS

        def score(self, rows: Sequence[Sequence[float]]) -> Any:
            if not self.knows():
                return None
            import xgboost

            return self.booster.predict(xgboost.DMatrix(np.array(rows, "float32")))

    config = ms.cost_model.xgb_model.XGBConfig(seed=seed)
    # One thread: samples are few, and threads that wait for work would disturb the measurements.
    return Model(extractor=extractor, config=config, num_warmup_samples=warm_up, num_tuning_cores=1)


def make_builder(build: Callable[[], Sequence[tuple[str | None, str | None]]]) -> Any:
    """A builder: ``build()`` gives (path of the kernel, or None; error, or None) of each current candidate."""
    ms = import_metaschedule()

    def built(_: Any, inputs: Any) -> list[Any]:
        return [ms.builder.BuilderResult(path, error) for path, error in build()]

    return _derived(ms.builder.PyBuilder, build=built)


def make_runner(run: Callable[[list[str]], Sequence[tuple[float | None, str | None]]]) -> Any:
    """A runner: ``run(paths)`` gives (seconds, or None; error, or None) of each kernel."""
    ms = import_metaschedule()

    def done(seconds: float | None, error: str | None) -> Any:
        result = run_result(seconds, error)
        return _derived(ms.runner.PyRunnerFuture, done=lambda _: True, result=lambda _: result)

    def ran(_: Any, inputs: Any) -> list[Any]:
        return [done(*found) for found in run([str(given.artifact_path) for given in inputs])]

    return _derived(ms.runner.PyRunner, run=ran)


def run_result(seconds: float | None, error: str | None) -> Any:
    """MetaSchedule's RunnerResult of one measurement."""
    ms = import_metaschedule()
    return ms.runner.RunnerResult(None if seconds is None else [seconds], error)


def make_callback(measured: Callable[[int, Any, Any], None]) -> Any:
    """A measure callback: ``measured(task id, candidates, runner results)`` after every batch."""

    def apply(_: Any, scheduler: Any, task_id: int, candidates: Any, built: Any, results: Any) -> None:
        measured(int(task_id), candidates, results)

    return _derived(import_metaschedule().measure_callback.PyMeasureCallback, apply=apply)


def make_scheduler(pick: Callable[[], int]) -> Any:
    """A task scheduler: ``pick()`` gives the task that is to have the next batch, -1 to end.

    Batches are not overlapped: building beside a measurement would disturb it.
    """

    def next_task_id(self: Any) -> int:
        scheduler = self._outer()
        for task_id in range(len(scheduler.tasks_)):
            scheduler.touch_task(task_id)  # joins the batch that has just been measured
        return pick()

    return _derived(import_metaschedule().task_scheduler.PyTaskScheduler, next_task_id=next_task_id)
